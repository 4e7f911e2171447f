"""Long-running programs in a namespace, started as systemd would: readiness is signalled through NOTIFY_SOCKET.

Waiting uses notifications and the exit of the process, never a sleep. Processes are ended by their pid.
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
        self._notifications: list[str] = []
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        # A path in the file system, because an abstract address is visible only in the network namespace of this
        # process.
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
        """The pid of the program."""
        return self._process.pid

    @property
    def stdout(self) -> str:
        """Standard output so far."""
        return self.stdout_path.read_text()

    @property
    def stderr(self) -> str:
        """Standard error so far."""
        return self.stderr_path.read_text()

    @property
    def is_running(self) -> bool:
        """Whether the process is still running."""
        return self._process.poll() is None

    def wait_until_ready(self, timeout_seconds: float = READY_SECONDS) -> None:
        """Wait until the process sends READY=1."""
        self.wait_until_notified(READY, timeout_seconds)

    def wait_until_notified(self, assignment: str, timeout_seconds: float = READY_SECONDS) -> None:
        """Wait for a line on NOTIFY_SOCKET, such as `STATUS=synced`, and consume it and the lines before it."""
        deadline = time.monotonic() + timeout_seconds
        while not self._is_notified(assignment):
            left = deadline - time.monotonic()
            if left <= 0:
                raise LabError(self._report(f"did not send {assignment} within {timeout_seconds} s"))
            if self._has_ended_silently(left):
                raise LabError(self._report(f"ended before it sent {assignment}"))

    def signal(self, number: int) -> None:
        """Send a signal to the process."""
        self._process.send_signal(number)

    def wait(self, timeout_seconds: float = READY_SECONDS) -> int:
        """Wait until the process exits, and return its exit status, negative for a signal."""
        try:
            return self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired as error:
            raise LabError(self._report(f"still running after {timeout_seconds} s")) from error

    def stop(self, timeout_seconds: float = _STOP_SECONDS) -> int:
        """Send SIGTERM and return the exit status; kill the process if it does not exit in time."""
        self._process.terminate()
        try:
            return self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            return self.kill()

    def kill(self) -> int:
        """Send SIGKILL, like a crash, and return the exit status."""
        self._process.kill()
        return self._process.wait()

    def close(self) -> None:
        """Stop the process and close the file descriptors."""
        self.stop()
        self._notify.close()
        os.close(self._pidfd)

    def _is_notified(self, assignment: str) -> bool:
        """Read the pending notifications; return whether the assignment was among all received ones, and consume it."""
        with suppress(BlockingIOError):
            while True:
                self._notifications += self._notify.recv(_LARGEST_NOTIFICATION).decode().splitlines()
        if assignment not in self._notifications:
            return False
        del self._notifications[: self._notifications.index(assignment) + 1]
        return True

    def _has_ended_silently(self, timeout_seconds: float) -> bool:
        """Wait for a notification or the exit; return False if there is still a notification to read."""
        poll = select.poll()
        poll.register(self._notify, select.POLLIN)
        poll.register(self._pidfd, select.POLLIN)
        ready = {descriptor for descriptor, _ in poll.poll(timeout_seconds * 1000)}
        return self._pidfd in ready and self._notify.fileno() not in ready

    def _report(self, reason: str) -> str:
        tail = "\n".join(self.stderr.splitlines()[-_SHOWN_LINES:])
        return f"{reason} (exit status {self._process.poll()}): {self.argv}\n{tail}"
