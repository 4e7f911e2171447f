"""The workers of a lab, seen from the process that builds it: a pool that starts them, and a handle for each.

The lab needs one process inside each namespace, ten in a small lab. They are forked by a fork server (`fork_server`)
that has imported their modules: a fork takes about 1.3 ms, while a new Python that imports the same modules takes
about 130 ms of CPU time.

Workers are tracked by pidfd, which never refers to a different process after the pid is reused. They have ended when
`close` returns.
"""

from __future__ import annotations

import itertools
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVar, cast

from .messages import Failure, Request, SpawnRequest
from .values import LabError

AnswerT = TypeVar("AnswerT")
ANSWER_SECONDS = 60.0
"""Far longer than any request takes: exceeding it means a bug in the lab."""
_END_SECONDS = 5.0
_PACKAGE_ROOT = Path(__file__).parents[len(__name__.split(".")) - 1]


class WorkerHandle:
    """The control socket of one worker; not to be shared between threads."""

    def __init__(self, request: SpawnRequest, control: socket.socket, stderr_path: Path) -> None:
        """Take ownership of the socket; call `wait_until_ready` before anything else."""
        self.name = request.name
        self._stderr_path = stderr_path
        self._control = Connection(control.detach())
        self._numbers = itertools.count(1)
        self._answers: dict[int, object] = {}
        self._pidfd: int | None = None

    def wait_until_ready(self) -> None:
        """Wait for the first message of the worker, its pid."""
        self._pidfd = os.pidfd_open(cast("int", self.receive(0)))

    def send(self, request: Request[object]) -> int:
        """Send a request and return its number, for `receive`."""
        number = next(self._numbers)
        self._control.send((number, request))
        return number

    def receive(self, number: int) -> object:
        """Wait for the answer to the request of that number."""
        while number not in self._answers:
            if not self._control.poll(ANSWER_SECONDS):
                message = f"{self.name} has not answered for {ANSWER_SECONDS} s"
                raise LabError(message)
            try:
                answered, answer = self._control.recv()
            except (EOFError, ConnectionResetError) as error:
                message = f"the worker of {self.name} has ended: {self._stderr_path.read_text()}"
                raise LabError(message) from error
            self._answers[answered] = answer
        answer = self._answers.pop(number)
        if isinstance(answer, Failure):
            message = f"{self.name}: {answer.reason}"
            raise LabError(message)
        return answer

    def call(self, request: Request[AnswerT]) -> AnswerT:
        """Send a request and wait for its answer."""
        return cast("AnswerT", self.receive(self.send(request)))

    def disconnect(self) -> None:
        """Close the control socket; the worker then exits."""
        self._control.close()

    def wait_until_ended(self) -> None:
        """Wait until the worker has exited; kill it if it does not."""
        if self._pidfd is None:
            return
        if not has_ended(self._pidfd, _END_SECONDS):
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            has_ended(self._pidfd, _END_SECONDS)
        os.close(self._pidfd)


class WorkerPool:
    """The fork server of a lab and the workers that it forked."""

    def __init__(self, stderr_path: Path) -> None:
        """Start the fork server; it imports its modules while the caller continues."""
        self._stderr_path = stderr_path
        self._workers: list[WorkerHandle] = []
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, stderr_path.open("w") as stderr:
            self._fork_server = subprocess.Popen(
                [sys.executable, "-m", f"{__package__}.fork_server", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                pass_fds=[theirs.fileno()],
                cwd=_PACKAGE_ROOT,
                start_new_session=True,  # Ctrl-C should reach only the test process, which then closes the lab
            )

    def spawn(self, requests: Iterable[SpawnRequest]) -> dict[str, WorkerHandle]:
        """Start a worker for each request, wait until all are ready, and return their handles by name."""
        started = [self._spawn(request) for request in requests]
        for worker in started:
            worker.wait_until_ready()
        return {worker.name: worker for worker in started}

    def _spawn(self, request: SpawnRequest) -> WorkerHandle:
        ours, theirs = socket.socketpair()
        with theirs:
            worker = WorkerHandle(request, ours, self._stderr_path)
            self._workers.append(worker)
            socket.send_fds(self._control, [pickle.dumps(request)], [theirs.fileno()])
        return worker

    def close(self) -> None:
        """End the workers and the fork server, and wait until they have exited."""
        for worker in self._workers:
            worker.disconnect()
        self._control.close()
        for worker in self._workers:
            worker.wait_until_ended()
        try:
            self._fork_server.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._fork_server.kill()
            self._fork_server.wait()


def has_ended(pidfd: int, timeout_seconds: float) -> bool:
    """Return whether the process has exited, waiting for it at most this long."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(timeout_seconds * 1000))
