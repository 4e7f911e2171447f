"""The servers of one namespace: TCP, UDP and SCTP, in both families.

Every question is answered immediately with the server's identity. TCP: a line when the connection is accepted, and one
for each line received, which echoes it. UDP: a datagram that echoes the question. SCTP: like TCP if the kernel supports
it; otherwise an INIT ACK whose cookie is the line, and an ABORT for a port that is not served. Runs in the event loop
of the worker.
"""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from ipaddress import ip_address
from typing import TypeAlias

from . import association
from .datagram import Datagram, address_of, answer, family_of, open_server, receive
from .values import Identity, IPAddress, Ports, Protocol, SocketAddress

Key: TypeAlias = tuple[Protocol, int]
BACKLOG = 4096
"""How many connections may wait to be accepted; the kernel limits it to net.core.somaxconn."""


class Server:
    """All ports that one host serves."""

    def __init__(self, name: str, families: tuple[socket.AddressFamily, ...]) -> None:
        """Create a server without open ports."""
        self._name = name
        self._families = families
        self._listeners: dict[Key, list[StreamListener | DatagramListener]] = {}
        self._sctp_ports: set[int] = set()
        self._sctp: list[DatagramListener] = []

    async def serve(self, ports: Ports) -> None:
        """Open the ports; those already open stay as they are."""
        for port in ports.tcp:
            if (Protocol.TCP, port) not in self._listeners:
                listeners = [await StreamListener.on_all(self._name, family, port) for family in self._families]
                self._listeners[Protocol.TCP, port] = [*listeners]
        for port in ports.udp:
            if (Protocol.UDP, port) not in self._listeners:
                self._listeners[Protocol.UDP, port] = [self._udp_listener(family, port) for family in self._families]
        if association.HAS_SCTP:
            for port in ports.sctp:
                if (Protocol.SCTP, port) not in self._listeners:
                    addresses = own_addresses(self._families)
                    self._listeners[Protocol.SCTP, port] = [
                        await StreamListener.on_one(self._name, address, port) for address in addresses
                    ]
        else:
            self._sctp_ports.update(ports.sctp)
            if self._sctp_ports and not self._sctp:
                self._sctp = [self._sctp_listener(family) for family in self._families]

    def stop(self, ports: Ports | None, *, keep_connections: bool) -> None:
        """Close the ports, or all if None; connections that are kept are still answered, as by a pod that drains."""
        for key in self._open_keys(ports):
            for listener in self._listeners.pop(key):
                listener.close(keep_connections=keep_connections)
        self._sctp_ports.difference_update(self._sctp_ports if ports is None else ports.sctp)
        if not self._sctp_ports:
            while self._sctp:
                self._sctp.pop().close(keep_connections=keep_connections)

    def _open_keys(self, ports: Ports | None) -> list[Key]:
        if ports is None:
            return list(self._listeners)
        wanted = ((Protocol.TCP, ports.tcp), (Protocol.UDP, ports.udp), (Protocol.SCTP, ports.sctp))
        keys = ((protocol, port) for protocol, numbers in wanted for port in numbers)
        return [key for key in keys if key in self._listeners]

    def _udp_listener(self, family: socket.AddressFamily, port: int) -> DatagramListener:
        sock = open_server(family, socket.SOCK_DGRAM, socket.IPPROTO_UDP, port)
        return DatagramListener(sock, self._answer_udp)

    def _sctp_listener(self, family: socket.AddressFamily) -> DatagramListener:
        return DatagramListener(open_server(family, socket.SOCK_RAW, association.IPPROTO_SCTP), self._answer_sctp)

    def _answer_udp(self, question: Datagram) -> bytes:
        return f"{Identity(self._name, question.local, question.peer)} ".encode() + question.payload

    def _answer_sctp(self, question: Datagram) -> bytes | None:
        packet = association.decode(question.payload)
        if packet is None or packet.chunk != association.INIT:
            return None
        if packet.port not in self._sctp_ports:
            return association.encode(association.reply_to(packet, association.ABORT))
        reached = SocketAddress(question.local.ip, packet.port)
        identity = Identity(self._name, reached, SocketAddress(question.peer.ip, packet.source_port))
        return association.encode(association.reply_to(packet, association.INIT_ACK, str(identity).encode()))


class StreamListener:
    """One listening TCP or SCTP socket and the connections accepted from it."""

    def __init__(self) -> None:
        """Create a listener that does not listen; use `on_all` or `on_one`."""
        self._server: asyncio.Server | None = None
        self._transports: set[asyncio.WriteTransport] = set()

    @classmethod
    async def on_all(cls, name: str, family: socket.AddressFamily, port: int) -> StreamListener:
        """Listen for TCP on every address of the family."""
        listener = cls()
        loop = asyncio.get_running_loop()
        wildcard = "0.0.0.0" if family == socket.AF_INET else "::"  # noqa: S104 - a server of a lab namespace
        listener._server = await loop.create_server(
            lambda: StreamSession(name, listener._transports), wildcard, port, reuse_address=True, backlog=BACKLOG
        )
        return listener

    @classmethod
    async def on_one(cls, name: str, address: IPAddress, port: int) -> StreamListener:
        """Listen for SCTP on one address, so that an association has no other addresses, which NAT does not translate."""
        listener = cls()
        sock = socket.socket(family_of(address), socket.SOCK_STREAM | socket.SOCK_NONBLOCK, association.IPPROTO_SCTP)
        sock.bind((str(address), port))
        listener._server = await asyncio.get_running_loop().create_server(
            lambda: StreamSession(name, listener._transports), sock=sock, backlog=BACKLOG
        )
        return listener

    def close(self, *, keep_connections: bool) -> None:
        """Stop accepting connections."""
        if self._server:
            self._server.close()
        if not keep_connections:
            for transport in self._transports:
                transport.abort()


class StreamSession(asyncio.Protocol):
    """One accepted connection."""

    def __init__(self, name: str, transports: set[asyncio.WriteTransport]) -> None:
        """Register in the transports of the listener until the connection is closed."""
        self._name = name
        self._transports = transports
        self._transport: asyncio.WriteTransport | None = None
        self._identity = b""
        self._unfinished = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the identity."""
        assert isinstance(transport, asyncio.WriteTransport)
        local, peer = transport.get_extra_info("sockname"), transport.get_extra_info("peername")
        if peer is None:  # reset before asyncio accepted it
            transport.abort()
            return
        self._transport = transport
        self._transports.add(transport)
        self._identity = str(Identity(self._name, address_of(local), address_of(peer))).encode()
        transport.write(self._identity + b"\n")

    def data_received(self, data: bytes) -> None:
        """Answer each complete line."""
        *lines, self._unfinished = (self._unfinished + data).split(b"\n")
        if self._transport:
            self._transport.writelines(self._identity + b" " + line + b"\n" for line in lines)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - signature of asyncio
        """Remove it from the transports."""
        if self._transport:
            self._transports.discard(self._transport)


class DatagramListener:
    """One socket that answers datagrams."""

    def __init__(self, sock: socket.socket, reply: Callable[[Datagram], bytes | None]) -> None:
        """Start answering; no answer is sent if `reply` returns None."""
        self._socket = sock
        self._reply = reply
        asyncio.get_running_loop().add_reader(sock, self._answer_all)

    def _answer_all(self) -> None:
        for question in _pending(self._socket):
            reply = self._reply(question)
            if reply is not None:
                # A rule or a missing route may block the answer: the client then sees a time-out.
                with suppress(OSError):
                    answer(self._socket, question, reply)

    def close(self, *, keep_connections: bool) -> None:  # noqa: ARG002 - datagrams have no connections
        """Stop answering."""
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()


def own_addresses(families: Iterable[socket.AddressFamily]) -> list[IPAddress]:
    """Return the addresses of this namespace in these families, except loopback and link-local addresses."""
    listing = json.loads(subprocess.run(["ip", "-json", "address"], capture_output=True, check=True).stdout)
    infos = [info for link in listing for info in link["addr_info"] if info["scope"] == "global"]
    return [ip for info in infos if family_of(ip := ip_address(info["local"])) in families]


def _pending(sock: socket.socket) -> Iterator[Datagram]:
    """Yield all pending datagrams."""
    while True:
        try:
            yield receive(sock)
        except BlockingIOError:
            return
        except ConnectionRefusedError:
            continue  # an earlier client closed its socket before it got the answer
