"""Detects which endpoint of a Service answers, by connecting to it repeatedly from the node itself.

The endpoints are addresses of the node's loopback interface, so the packet path is measured without a network.
"""

import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

from tests.cluster.namespace import call_inside

from .kernel_watch import NotProgrammedError

_PAUSE_SECONDS = 0.0005
_ANSWER_SECONDS = 0.02
"""Longer than a handshake on the loopback takes; a removed endpoint does not answer at all."""
_RESET_AT_CLOSE = b"\1\0\0\0\0\0\0\0"


class Probe:
    """Endpoints in a namespace, and a client of a Service in it."""

    def __init__(
        self, namespace: str, service: tuple[str, int], listeners: dict[str, socket.socket], limit_seconds: float
    ) -> None:
        self._namespace = namespace
        self._service = service
        self._listeners = listeners
        self._limit_seconds = limit_seconds
        self._source = next(iter(listeners))

    @contextmanager
    def until_answered_by(self, ip: str) -> Iterator["Future[float]"]:
        """Probe from now on; the result is when the endpoint answered first, on the clock of `time.monotonic`.

        The result is `NotProgrammedError` if it did not answer within the limit.
        """
        with ThreadPoolExecutor(1) as thread:
            yield thread.submit(call_inside, self._namespace, lambda: self._first_answer(ip))

    def _first_answer(self, ip: str) -> float:
        deadline = time.monotonic() + self._limit_seconds
        while time.monotonic() < deadline:
            if self._answering() == ip:
                return time.monotonic()
            time.sleep(_PAUSE_SECONDS)
        raise NotProgrammedError

    def _answering(self) -> str | None:
        """Connect once, and return the endpoint that accepted the connection."""
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)  # so no port is in TIME_WAIT
            client.settimeout(_ANSWER_SECONDS)
            client.bind((self._source, 0))
            try:
                client.connect(self._service)
            except OSError:
                return None
            for ip, listener in self._listeners.items():
                try:
                    listener.accept()[0].close()
                except BlockingIOError:
                    continue
                return ip
        return None


@contextmanager
def probe(
    namespace: str, service: tuple[str, int], endpoints: Sequence[str], port: int, limit_seconds: float
) -> Iterator[Probe]:
    """Add endpoints to a namespace, and a default route to its loopback interface, so that all other packets stay in it."""
    with ExitStack() as stack:
        for ip in endpoints:
            _ip(namespace, "address", "add", f"{ip}/32", "dev", "lo")
        _ip(namespace, "route", "add", "default", "dev", "lo")
        listeners = {ip: stack.enter_context(call_inside(namespace, socket.socket)) for ip in endpoints}
        for ip, listener in listeners.items():
            listener.bind((ip, port))
            listener.listen()
            listener.settimeout(0)
        yield Probe(namespace, service, listeners, limit_seconds)


def _ip(namespace: str, *arguments: str) -> None:
    subprocess.run(["ip", "-netns", namespace, *arguments], check=True)
