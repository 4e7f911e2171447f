"""Listening sockets for HTTP: one thread waits on all of them, and each client has a thread for its one request.

There may be hundreds of sockets, one for each health check node port. They must never harm the agent: an address that is
not available is logged as one error and retried every few seconds; a client that hangs occupies one thread, for a limited
time. As in kube-proxy's servers, there is neither TLS nor authentication.
"""

import logging
import os
import selectors
import socket
import threading
from collections import deque
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import NamedTuple
from wsgiref.types import WSGIApplication

from pyproxy.model.address import ListenAddress, family_of, ip_text
from pyproxy.model.event import Event
from pyproxy.serve.http_exchange import exchange

logger = logging.getLogger(__name__)

# As in kube-proxy (`cmd/kube-proxy/app/server.go`, serveHealthz).
_RETRY_SECONDS = 5.0
# Time for which a client may send nothing.
_IDLE_SECONDS = 10.0
# Maximum duration of a connection.
_REQUEST_SECONDS = 30.0
# Maximum number of connections; one more closes the oldest.
_MOST_CONNECTIONS = 128
_DESCRIPTORS_ARE_SHORT_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class HttpService:
    """An application and its addresses."""

    app: WSGIApplication
    addresses: Collection[ListenAddress]
    both_families: bool = True
    """Whether an address of all zeros means both families, as in Go's network ``tcp``, or only its own."""
    failed: Callable[[str], None] | None = None
    """Called in the thread of the sockets, instead of a log line, when an address is not available for the first time."""
    event: Event | None = None
    """Event that is sent with the log line."""


class _Place(NamedTuple):
    name: str
    address: ListenAddress


class Listeners(threading.Thread):
    """Serves HTTP services from `start` to `close`. Call these and `serve` in one thread.

    Args:
        retry_seconds: time between two tries to listen on an address.
    """

    def __init__(self, retry_seconds: float = _RETRY_SECONDS) -> None:
        super().__init__(name="listeners", daemon=True)
        self._retry_seconds = retry_seconds
        self._services: dict[str, HttpService] = {}
        self._settled: dict[str, HttpService] = {}
        """The services for which sockets were last opened and closed."""
        self._open: dict[_Place, socket.socket] = {}
        self._missing: set[_Place] = set()
        """Addresses that are not available."""
        self._retry_at = 0.0
        self._connections: deque[tuple[float, socket.socket]] = deque()
        """Deadline of each connection, the earliest first."""
        self._is_closed = False
        # Ends the wait for clients. Several writes before the read count as one, which is enough: each pass looks at all services.
        self._alarm = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._alarm, selectors.EVENT_READ)

    def serve(self, name: str, service: HttpService | None) -> None:
        """Serve a service, and stop to serve the one that had the name before.

        Args:
            name: log lines begin with it.
            service: None means that nothing is served. Sockets of addresses that the service already had stay open.
        """
        self.serve_all({name: service})

    def serve_all(self, services: Mapping[str, HttpService | None]) -> None:
        """Serve several services, as `serve` does; an address that moves between them is closed before it is opened."""
        # One assignment, so that the other thread sees either the old or the new dictionary.
        merged = {**self._services, **services}
        self._services = {name: service for name, service in merged.items() if service is not None}
        self._wake()

    def close(self) -> None:
        """Stop serving, and wait until all sockets are closed."""
        self._is_closed = True
        self._wake()
        self.join()
        os.close(self._alarm)  # only after the end of the thread, which waits for it

    def run(self) -> None:
        """Serve until closed."""
        while not self._is_closed:
            self._settle()
            # Sleep until a client connects, an address must be retried, or the oldest connection reaches its deadline.
            times = [self._retry_at] if self._missing else []
            if self._connections:
                times.append(self._connections[0][0])
            for key, _ in self._selector.select(max(0.0, min(times) - monotonic()) if times else None):
                if key.data is None:
                    os.eventfd_read(self._alarm)
                else:
                    self._accept(key.data)
            # Forget closed connections, and close those whose deadline has passed.
            while self._connections and (
                self._connections[0][1].fileno() < 0 or self._connections[0][0] <= monotonic()
            ):
                self._end_oldest()
        for place in tuple(self._open):
            self._close(place)
        self._selector.close()

    def _wake(self) -> None:
        os.eventfd_write(self._alarm, 1)

    def _settle(self) -> None:
        services, is_due = self._services, monotonic() >= self._retry_at
        if services is self._settled and not (self._missing and is_due):
            return  # the usual case, which must be fast: there may be hundreds of services
        self._settled = services
        wanted = [_Place(name, address) for name, service in services.items() for address in service.addresses]
        # Close before opening: a port may move from one Service to another.
        for place in self._open.keys() - set(wanted):
            self._close(place)
        self._missing &= set(wanted)
        for place in wanted:
            if place not in self._open and (is_due or place not in self._missing):
                self._try(place, services[place.name])

    def _try(self, place: _Place, service: HttpService) -> None:
        ip, port = place.address
        try:
            # A socket of :: without IPV6_V6ONLY also accepts IPv4 (ipv6(7)); on a node without IPv6 there is only 0.0.0.0.
            if service.both_families and not any(ip) and socket.has_dualstack_ipv6():
                listener = socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
            else:
                listener = socket.create_server((ip_text(ip), port), family=family_of(ip).socket_family)
        except OSError as error:
            self._retry_at = monotonic() + self._retry_seconds
            reason = os.strerror(error.errno) if error.errno else str(error)
            message = f"{place.name} cannot be served on {place.address}: {reason}"
            if place in self._missing:
                logger.debug("%s; trying on", message)
                return
            self._missing.add(place)
            if service.failed is not None:
                service.failed(message)
                return
            logger.error("%s; trying on", message, extra={"event": service.event})  # noqa: TRY400  # no need of a traceback
            return
        logger.info("%s served on http://%s", place.name, place.address)
        listener.settimeout(
            0
        )  # the client of a readable listener may be gone before `accept`, which must not block then
        self._missing.discard(place)
        self._open[place] = listener
        self._selector.register(listener, selectors.EVENT_READ, place)

    def _close(self, place: _Place) -> None:
        listener = self._open.pop(place)
        self._selector.unregister(listener)
        listener.close()
        logger.info("%s not served any more on http://%s", place.name, place.address)

    def _accept(self, place: _Place) -> None:
        listener, service = self._open.get(place), self._services.get(place.name)
        if listener is None or service is None:
            return
        try:
            connection, peer = listener.accept()
        except OSError as error:
            # Either the client is gone, or no descriptor is left; without a pause the latter would be a busy loop.
            logger.debug("%s: %s", place.name, error)
            threading.Event().wait(_DESCRIPTORS_ARE_SHORT_SECONDS)
            return
        # One connection too many ends the oldest, so that a client with many idle connections cannot block other clients.
        if len(self._connections) >= _MOST_CONNECTIONS:
            self._connections = deque(each for each in self._connections if each[1].fileno() >= 0)
        if len(self._connections) >= _MOST_CONNECTIONS:
            self._end_oldest()
        self._connections.append((monotonic() + _REQUEST_SECONDS, connection))

        def answer() -> None:
            try:
                with connection:
                    connection.settimeout(_IDLE_SECONDS)
                    exchange(connection, service.app)
            except OSError as error:
                logger.debug("%s: %s", peer[0], error)

        # A thread for each connection: a page may wait for the agent's loop, and must not delay the answer to a probe. Daemon
        # threads, because an exchange in progress must not delay the end of the agent.
        try:
            threading.Thread(target=answer, daemon=True).start()
        except RuntimeError as error:  # no more threads (RLIMIT_NPROC, pids cgroup)
            logger.debug("%s: %s", place.name, error)
            connection.close()

    def _end_oldest(self) -> None:
        _, connection = self._connections.popleft()
        # It may be closed already. `shutdown` also wakes the thread that reads from it, which `close` would not.
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
