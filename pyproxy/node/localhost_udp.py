"""Relays UDP flows to one localhost node port.

A flow is the traffic of one client address and port, and has a socket of its own to its endpoint. Datagrams are forwarded
or dropped, never queued: memory is bounded by the number of flows.
"""

import asyncio
import logging
import socket
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Any

from pyproxy.model.address import ip_text
from pyproxy.model.endpoint import Endpoint
from pyproxy.node.localhost_port import EndpointChoice, Site
from pyproxy.plan.localhost import RelayTarget

logger = logging.getLogger(__name__)

IDLE_SECONDS = 30.0
STREAM_IDLE_SECONDS = 120.0
"""A flow without a datagram ends after this time; after the longer one if the endpoint has sent after its first 2 s. The
kernel's defaults (``nf_conntrack_proto_udp.c``, since Linux 5.18)."""
_STREAM_AFTER_SECONDS = 2.0
_LARGEST_DATAGRAM = 1 << 16
# Datagrams read from one socket before other sockets get a turn.
_DATAGRAMS_PER_TURN = 64

Client = tuple[Any, ...]
"""An address as `recvfrom` returns it."""


@dataclass(slots=True, eq=False)
class Flow:
    """The datagrams between one client and one endpoint."""

    port: "UdpPort"
    client: Client
    endpoint: Endpoint
    socket: socket.socket
    began: float
    used: float
    is_stream: bool = False


class UdpFlows:
    """The flows of all ports, bounded in number: one more ends the flow that was idle for the longest time.

    Args:
        most: maximum number of flows; each has one descriptor.
        idle_seconds: time without a datagram after which a flow ends that is not a stream.
    """

    def __init__(self, most: int, idle_seconds: float = IDLE_SECONDS) -> None:
        self._most = most
        self._idle_seconds = idle_seconds
        # In the order of their last datagram: the first is always the one that was idle for the longest time.
        self._by_use: OrderedDict[Flow, None] = OrderedDict()
        self._expiry: asyncio.TimerHandle | None = None

    def add(self, flow: Flow) -> None:
        """Add a flow; if there are too many, end the one that was idle for the longest time."""
        while len(self._by_use) >= self._most:
            oldest = next(iter(self._by_use))
            oldest.port.forget(oldest)
        self._by_use[flow] = None
        if self._expiry is None:
            self._expire()

    def use(self, flow: Flow) -> None:
        """Record that a flow was used now."""
        flow.used = monotonic()
        self._by_use.move_to_end(flow)

    def remove(self, flow: Flow) -> None:
        """Remove a flow that ended."""
        self._by_use.pop(flow, None)
        if not self._by_use and self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None

    def _expire(self) -> None:
        now = monotonic()
        self._expiry = asyncio.get_running_loop().call_later(self._idle_seconds / 4, self._expire)
        for flow in list(self._by_use):  # a copy, because `forget` removes from it
            idle = now - flow.used
            if idle < self._idle_seconds:
                return  # the flows after it were used later
            if not flow.is_stream or idle >= STREAM_IDLE_SECONDS:
                flow.port.forget(flow)


class UdpPort:
    """One node port in one family: its socket and its flows.

    Args:
        site: where it listens.
        target: where flows go.
        flows: of all ports.
    """

    def __init__(self, site: Site, target: RelayTarget, flows: UdpFlows) -> None:
        self._site = site
        self._choice = EndpointChoice(target)
        self._all_flows = flows
        self._flows: dict[Client, Flow] = {}
        self._task = asyncio.get_running_loop().create_task(self._serve())

    def retarget(self, target: RelayTarget) -> None:
        """Send new flows to other endpoints; end the flows of endpoints that no longer serve."""
        self._choice.retarget(target)
        stay = target.serving.union(target.endpoints)
        for flow in [flow for flow in self._flows.values() if flow.endpoint not in stay]:
            self.forget(flow)

    def end(self) -> tuple["asyncio.Task[None]", ...]:
        """Close the socket and end all flows; return the tasks that have to finish."""
        self._task.cancel()
        return (self._task,)

    def forget(self, flow: Flow) -> None:
        """End a flow; the client's next datagram begins a new one."""
        asyncio.get_running_loop().remove_reader(flow.socket.fileno())
        flow.socket.close()
        self._flows.pop(flow.client, None)
        self._all_flows.remove(flow)

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        async with self._site.listening(self._choice.service) as listener:
            loop.add_reader(listener.fileno(), self._receive, listener)
            try:
                await loop.create_future()  # until cancelled
            finally:
                loop.remove_reader(listener.fileno())
                for flow in list(self._flows.values()):
                    self.forget(flow)

    def _receive(self, listener: socket.socket) -> None:
        for _ in range(_DATAGRAMS_PER_TURN):
            try:
                data, client = listener.recvfrom(_LARGEST_DATAGRAM)
            except BlockingIOError:
                return
            except OSError as error:
                # An answer was rejected with an ICMP error: the client is gone.
                logger.debug("%s: %s", self._site.name, error)
                continue
            flow = self._flows.get(client) or self._open(listener, client)
            if flow is None:
                continue
            self._all_flows.use(flow)
            try:
                flow.socket.send(data)
            except BlockingIOError:
                pass  # a full queue drops datagrams
            except OSError as error:
                # The endpoint rejected an earlier datagram with an ICMP error.
                logger.debug("%s: %s: %s", self._site.name, flow.endpoint, error)
                self.forget(flow)

    def _open(self, listener: socket.socket, client: Client) -> Flow | None:
        endpoint, now = self._choice.choose(), monotonic()
        server = None
        try:
            server = socket.socket(self._site.family.socket_family, socket.SOCK_DGRAM)
            server.settimeout(0)
            # A connected socket receives from its endpoint only, and reports the endpoint's ICMP errors.
            server.connect((ip_text(endpoint.ip), endpoint.port))
        except OSError as error:
            # No route, or no descriptor is left.
            logger.debug("%s: %s: %s", self._site.name, endpoint, error)
            if server is not None:
                server.close()
            return None
        flow = Flow(self, client, endpoint, server, now, now)
        self._all_flows.add(flow)
        self._flows[client] = flow
        asyncio.get_running_loop().add_reader(server.fileno(), self._answer, listener, flow)
        return flow

    def _answer(self, listener: socket.socket, flow: Flow) -> None:
        for _ in range(_DATAGRAMS_PER_TURN):
            try:
                data = flow.socket.recv(_LARGEST_DATAGRAM)
            except BlockingIOError:
                return
            except OSError as error:
                logger.debug("%s: %s: %s", self._site.name, flow.endpoint, error)
                self.forget(flow)
                return
            self._all_flows.use(flow)
            flow.is_stream = flow.is_stream or flow.used - flow.began > _STREAM_AFTER_SECONDS
            with suppress(OSError):  # a full queue drops datagrams, and the client may be gone
                listener.sendto(data, flow.client)
