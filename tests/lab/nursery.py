"""Residents as the process that builds the lab sees them: a nursery that starts them, and a handle for each.

Law: every process started here is known by a pidfd, which cannot come to mean another process, and is gone when
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

from .messages import Birth, Failure, Request
from .values import LabError

AnswerT = TypeVar("AnswerT")
ANSWER_SECONDS = 60.0
"""Far longer than any request takes: only a fault of the lab exceeds it."""
_END_SECONDS = 5.0
_PACKAGE_ROOT = Path(__file__).parents[len(__name__.split(".")) - 1]


class Resident:
    """The control socket of one resident; not to be shared between threads."""

    def __init__(self, birth: Birth, control: socket.socket, stderr_path: Path) -> None:
        """Take over the socket; `wait_until_ready` completes the birth."""
        self.name = birth.name
        self._stderr_path = stderr_path
        self._control = Connection(control.detach())
        self._numbers = itertools.count(1)
        self._answers: dict[int, object] = {}
        self._pidfd: int | None = None

    def wait_until_ready(self) -> None:
        """Wait for the first word of the resident: its pid."""
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
                message = f"the resident of {self.name} is gone: {self._stderr_path.read_text()}"
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

    def hang_up(self) -> None:
        """Close the control socket, which ends the resident."""
        self._control.close()

    def wait_until_gone(self) -> None:
        """Wait for its end; one that does not end by itself is killed."""
        if self._pidfd is None:
            return
        if not has_ended(self._pidfd, _END_SECONDS):
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            has_ended(self._pidfd, _END_SECONDS)
        os.close(self._pidfd)


class Nursery:
    """The zygote of a lab and the residents it forked."""

    def __init__(self, stderr_path: Path) -> None:
        """Start the zygote; it imports its modules while the caller goes on."""
        self._stderr_path = stderr_path
        self._residents: list[Resident] = []
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, stderr_path.open("w") as stderr:
            self._zygote = subprocess.Popen(
                [sys.executable, "-m", f"{__package__}.zygote", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                pass_fds=[theirs.fileno()],
                cwd=_PACKAGE_ROOT,
                start_new_session=True,  # Ctrl-C is for the tests; they end the lab
            )

    def bear(self, births: Iterable[Birth]) -> dict[str, Resident]:
        """Start a resident for each birth and wait until all are ready; the result is by name."""
        newborn = [self._bear(birth) for birth in births]
        for resident in newborn:
            resident.wait_until_ready()
        return {resident.name: resident for resident in newborn}

    def _bear(self, birth: Birth) -> Resident:
        ours, theirs = socket.socketpair()
        with theirs:
            resident = Resident(birth, ours, self._stderr_path)
            self._residents.append(resident)
            socket.send_fds(self._control, [pickle.dumps(birth)], [theirs.fileno()])
        return resident

    def close(self) -> None:
        """End the residents and the zygote, and wait until they are gone."""
        for resident in self._residents:
            resident.hang_up()
        self._control.close()
        for resident in self._residents:
            resident.wait_until_gone()
        try:
            self._zygote.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._zygote.kill()
            self._zygote.wait()


def has_ended(pidfd: int, timeout_seconds: float) -> bool:
    """Wait for the end of a process, at most so long."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(timeout_seconds * 1000))
