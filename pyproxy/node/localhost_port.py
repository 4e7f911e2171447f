"""The common part of the relay's TCP and UDP ports: listening, and the choice of an endpoint."""

import asyncio
import logging
import os
import random
import socket
import typing
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import monotonic

from pyproxy.model.address import LOOPBACK_IPS, Family, ip_text
from pyproxy.model.endpoint import Endpoint
from pyproxy.model.event import event_extra
from pyproxy.model.names import NamespacedName, Protocol
from pyproxy.plan.localhost import RelayTarget

logger = logging.getLogger(__name__)

_BACKLOG = (
    128  # connections that wait while the loop serves other ports; the kernel drops further SYNs, which are repeated
)


class RelayCounts(typing.Protocol):
    """Counts listeners of the relay; its methods are called in the relay's thread."""

    def listeners_changed(self, family: Family, change: int) -> None:
        """Add 1 or -1 to the number of open sockets."""

    def listening_failed(self, family: Family) -> None:
        """Count a failed attempt to listen."""


@dataclass(frozen=True, slots=True)
class Site:
    """The place where one node port listens in one family."""

    family: Family
    protocol: Protocol
    number: int
    retry_seconds: float
    counts: RelayCounts

    @property
    def name(self) -> str:
        """Return its name in log lines."""
        return f"localhost node port {self.number}/{self.protocol.name} ({self.family})"

    @asynccontextmanager
    async def listening(self, service: Callable[[], NamespacedName]) -> AsyncIterator[socket.socket]:
        """Open the node port's socket, which does not block; wait while another program has the port.

        Args:
            service: returns the Service that has the node port now, for the Event.
        """
        was_logged = False
        while True:
            try:
                listener = self._bound()
                break
            except OSError as error:
                self.counts.listening_failed(self.family)
                if not was_logged:
                    reason = os.strerror(error.errno) if error.errno else str(error)
                    event = event_extra("Service", service(), "LocalhostNodePortFailed", "ListenOnLocalhost")
                    # The message has everything that a traceback would add.
                    logger.error("%s is not served: %s; will retry", self.name, reason, extra=event)  # noqa: TRY400
                was_logged = True
                await asyncio.sleep(self.retry_seconds)
        with listener:
            self.counts.listeners_changed(self.family, 1)
            try:
                yield listener
            finally:
                self.counts.listeners_changed(self.family, -1)

    def _bound(self) -> socket.socket:
        address = (ip_text(LOOPBACK_IPS[self.family]), self.number)
        if self.protocol is Protocol.TCP:
            listener = socket.create_server(address, family=self.family.socket_family, backlog=_BACKLOG)
        else:
            # Without SO_REUSEADDR, with which two UDP sockets can have the same port.
            listener = socket.socket(self.family.socket_family, socket.SOCK_DGRAM)
            try:
                listener.bind(address)
            except OSError:
                listener.close()
                raise
        listener.settimeout(0)  # non-blocking: the loop says when there is something to read
        return listener


class EndpointChoice:
    """Chooses endpoints; with session affinity the same one for all clients of a port, because all have the same address."""

    def __init__(self, target: RelayTarget) -> None:
        self._target = target
        self._pinned: Endpoint | None = None
        self._pinned_at = 0.0

    def service(self) -> NamespacedName:
        """Return the Service that has the node port."""
        return self._target.service

    def retarget(self, target: RelayTarget) -> None:
        """Choose from other endpoints from now on."""
        if target.affinity_seconds != self._target.affinity_seconds:
            self._pinned = None
        self._target = target

    def choose(self) -> Endpoint:
        """Return the endpoint of a new connection or flow."""
        target, now = self._target, monotonic()
        if target.affinity_seconds is None:
            return random.choice(target.endpoints)  # noqa: S311  # no secret
        if self._pinned not in target.endpoints or now - self._pinned_at > target.affinity_seconds:
            self._pinned = random.choice(target.endpoints)  # noqa: S311  # no secret
        self._pinned_at = now
        assert self._pinned is not None  # noqa: S101  # for mypy
        return self._pinned
