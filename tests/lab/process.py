"""Programs that run inside a namespace for a while, as systemd would run them: readiness by NOTIFY_SOCKET.

Law: a process is waited for by its own words and its own end, never by sleeping, and is ended by its pid.
"""

from __future__ import annotations

import os
import select
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from .namespace import Namespace
from .values import LabError

READY = "READY=1"
READY_SECONDS = 30.0
_STOP_SECONDS = 10.0
_SHOWN_LINES = 30
_LARGEST_NOTIFICATION = 65536


class Process:
    """One program in one namespace."""

    def __init__(
        self, namespace: Namespace, argv: Sequence[str], *, files: Path, env: Mapping[str, str] | None = None
    ) -> None:
        """Start argv; its output goes to files whose names begin with `files`."""
        self.argv = list(argv)
        self.stdout_path = Path(f"{files}.stdout")
        self.stderr_path = Path(f"{files}.stderr")
        notify_path = Path(f"{files}.notify")
        self._said: list[str] = []
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        # In the file system: an abstract address would belong to the namespace of this process.
        self._notify.bind(str(notify_path))
        with self.stdout_path.open("w") as stdout, self.stderr_path.open("w") as stderr:
            self._process = subprocess.Popen(
                namespace.command(argv),
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                env={**os.environ, **(env or {}), "NOTIFY_SOCKET": str(notify_path)},
                start_new_session=True,
            )
        self._pidfd = os.pidfd_open(self._process.pid)

    @property
    def pid(self) -> int:
        """The program's own pid."""
        return self._process.pid

    @property
    def stdout(self) -> str:
        """What it has written to standard output so far."""
        return self.stdout_path.read_text()

    @property
    def stderr(self) -> str:
        """What it has written to standard error so far."""
        return self.stderr_path.read_text()

    @property
    def is_running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    def wait_until_ready(self, timeout_seconds: float = READY_SECONDS) -> None:
        """Wait until it says READY=1."""
        self.wait_until_said(READY, timeout_seconds)

    def wait_until_said(self, assignment: str, timeout_seconds: float = READY_SECONDS) -> None:
        """Wait for a line on NOTIFY_SOCKET, such as `STATUS=synced`, and forget it and those before it."""
        deadline = time.monotonic() + timeout_seconds
        while not self._has_said(assignment):
            left = deadline - time.monotonic()
            if left <= 0:
                raise LabError(self._report(f"did not say {assignment} for {timeout_seconds} s"))
            if self._has_ended_before_speaking(left):
                raise LabError(self._report(f"ended before it said {assignment}"))

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def wait(self, timeout_seconds: float = READY_SECONDS) -> int:
        """Wait for its end and return its exit status, negative for a signal."""
        try:
            return self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired as error:
            raise LabError(self._report(f"still running after {timeout_seconds} s")) from error

    def stop(self, timeout_seconds: float = _STOP_SECONDS) -> int:
        """Ask it to end, by SIGTERM, and return its exit status; kill it if it does not."""
        self._process.terminate()
        try:
            return self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            return self.kill()

    def kill(self) -> int:
        """End it at once, by SIGKILL, as a crash would."""
        self._process.kill()
        return self._process.wait()

    def close(self) -> None:
        """Stop it and give its file descriptors back."""
        self.stop()
        self._notify.close()
        os.close(self._pidfd)

    def _has_said(self, assignment: str) -> bool:
        """Listen to what is there already."""
        with suppress(BlockingIOError):
            while True:
                self._said += self._notify.recv(_LARGEST_NOTIFICATION).decode().splitlines()
        if assignment not in self._said:
            return False
        del self._said[: self._said.index(assignment) + 1]
        return True

    def _has_ended_before_speaking(self, timeout_seconds: float) -> bool:
        """Wait until it speaks or ends; its last words count even if it has ended since."""
        poll = select.poll()
        poll.register(self._notify, select.POLLIN)
        poll.register(self._pidfd, select.POLLIN)
        ready = {descriptor for descriptor, _ in poll.poll(timeout_seconds * 1000)}
        return self._pidfd in ready and self._notify.fileno() not in ready

    def _report(self, reason: str) -> str:
        tail = "\n".join(self.stderr.splitlines()[-_SHOWN_LINES:])
        return f"{reason} (exit status {self._process.poll()}): {self.argv}\n{tail}"
