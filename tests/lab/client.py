"""The client side of probes: one socket per probe, in the event loop of the worker.

Every network error becomes an `Outcome`; exceptions are bugs in the lab. A probe never waits longer than its time-out.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import random
import socket
import struct
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import replace

from . import association
from .association import HAS_SCTP
from .datagram import (
    LARGEST_DATAGRAM,
    IcmpError,
    family_of,
    queue_icmp_errors,
    queued_icmp_errors,
    source_address,
    without_ip_header,
)
from .values import DEFAULT_TIMEOUT_SECONDS, Identity, Outcome, Probe, Protocol, RefusedBy, Verdict

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_SLICES = 8
"""Of a time-out."""
_raw_ports = itertools.cycle(range(20000, 30000))
"""Source ports for SCTP: the kernel assigns none to a raw socket. They are below the kernel's ephemeral range."""


_fresh_ports = itertools.cycle(random.sample(range(33000, 61000), k=28000))
"""Source ports for TCP and UDP. The kernel may reuse a source port for another destination. If both destinations are
addresses of one Service that lead to one endpoint, and the source port is kept (IPVS), the second connection has to
wait until the conntrack entry of the first has expired."""


async def send(probe: Probe) -> Outcome:
    """Send one probe and close its socket."""
    channel = open_channel(probe)
    try:
        return await channel.first()
    finally:
        channel.abandon()


def open_channel(probe: Probe) -> Channel:
    """Return a channel for the protocol of the probe; its socket is bound, nothing is sent yet."""
    return _CHANNELS[probe.protocol](probe)


def _bind_to_fresh_port(sock: socket.socket, source: str) -> None:
    while True:
        try:
            sock.bind((source, next(_fresh_ports)))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
        else:
            return


class Channel(ABC):
    """A client socket."""

    kind: socket.SocketKind
    protocol = 0

    def __init__(self, probe: Probe) -> None:
        """Open and bind the socket."""
        self._to = (str(probe.to.ip), probe.to.port)
        self._timeout_seconds = probe.timeout_seconds or DEFAULT_TIMEOUT_SECONDS
        self._socket = sock = socket.socket(family_of(probe.to.ip), self.kind | socket.SOCK_NONBLOCK, self.protocol)
        queue_icmp_errors(sock)
        if probe.source_port:
            # Only with a fixed port: otherwise the kernel may assign one port to two sockets that both set this option,
            # and of two UDP sockets connected to one server only one receives the answers.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        wildcard = "::" if sock.family == socket.AF_INET6 else ""
        source = str(probe.source or wildcard)
        if probe.source_port or self.kind is socket.SOCK_RAW:
            if probe.source or probe.source_port:
                sock.bind((source, probe.source_port))
        else:
            _bind_to_fresh_port(sock, source)

    async def first(self) -> Outcome:
        """Connect, send the first question, and return the outcome."""
        return await self._outcome(is_first=True)

    async def again(self) -> Outcome:
        """Send one more question through the same socket."""
        return await self._outcome(is_first=False)

    def close(self) -> None:
        """Close the socket gracefully."""
        self._socket.close()

    def abandon(self) -> None:
        """Close the socket without leaving state in the kernel."""
        self.close()

    @abstractmethod
    async def _connect(self) -> None:
        """Connect the socket to the server."""

    @abstractmethod
    async def _ask(self, *, is_first: bool) -> str:
        """Send a question, if the protocol needs one, and return the server's line."""

    async def _outcome(self, *, is_first: bool) -> Outcome:
        exchange = asyncio.ensure_future(self._exchange(is_first=is_first))
        try:
            for _ in range(_SLICES):
                # While the whole machine is stopped, no answer can come: that counts as one slice at most.
                await asyncio.wait([exchange], timeout=self._timeout_seconds / _SLICES)
                if exchange.done():
                    return exchange.result()
            return Outcome(Verdict.TIMEOUT)
        except OSError as error:
            return self._failure(error)
        finally:
            exchange.cancel()

    async def _exchange(self, *, is_first: bool) -> Outcome:
        if is_first:
            await self._connect()
        return Outcome(Verdict.REPLY, Identity.parse(await self._ask(is_first=is_first)))

    def _failure(self, error: OSError) -> Outcome:
        number = error.errno or 0
        if number == errno.EPERM:
            # Dropped in the OUTPUT hook of the sender. IPVS also sends an ICMP error; without one it counts as a
            # time-out.
            if self._icmp_errors():
                return Outcome(Verdict.REFUSED, refused_by=RefusedBy.PORT_UNREACHABLE, error="ECONNREFUSED")
            return Outcome(Verdict.TIMEOUT)
        name = errno.errorcode.get(number, "")
        if number not in {errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE}:
            return Outcome(Verdict.UNREACHABLE, error=name)
        by_icmp = isinstance(error, IcmpError) or self._icmp_errors()
        refused_by = RefusedBy.PORT_UNREACHABLE if by_icmp else RefusedBy.RESET
        return Outcome(Verdict.REFUSED, refused_by=refused_by, error=name)

    def _icmp_errors(self) -> list[IcmpError]:
        """Return the ICMP errors about packets of this channel."""
        return queued_icmp_errors(self._socket)


class TcpChannel(Channel):
    """A TCP connection; the server sends the first line, then answers line by line."""

    kind = socket.SOCK_STREAM

    def __init__(self, probe: Probe) -> None:
        """Open and bind the socket."""
        super().__init__(probe)
        self._tokens = itertools.count(1)
        self._received = b""

    def abandon(self) -> None:
        """Reset the connection, to avoid TIME_WAIT: a probe with a fixed source port can then be repeated immediately."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.close()

    async def _connect(self) -> None:
        await asyncio.get_running_loop().sock_connect(self._socket, self._to)

    async def _ask(self, *, is_first: bool) -> str:
        if is_first:
            return await self._line()
        token = str(next(self._tokens))
        await asyncio.get_running_loop().sock_sendall(self._socket, f"{token}\n".encode())
        while not (line := await self._line()).endswith(f" {token}"):
            pass  # the answer to an earlier question that timed out
        return line

    async def _line(self) -> str:
        while b"\n" not in self._received:
            data = await asyncio.get_running_loop().sock_recv(self._socket, LARGEST_DATAGRAM)
            if not data:
                raise ConnectionResetError(errno.EPIPE, "the server closed the connection")
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        return line.decode()


class UdpChannel(Channel):
    """A connected UDP socket: the kernel delivers only answers from the address that the question was sent to."""

    kind = socket.SOCK_DGRAM

    def __init__(self, probe: Probe) -> None:
        """Open and bind the socket."""
        super().__init__(probe)
        self._tokens = itertools.count(1)

    async def _connect(self) -> None:
        self._socket.connect(self._to)

    async def _ask(self, *, is_first: bool) -> str:  # noqa: ARG002 - every datagram is a question
        token = str(next(self._tokens))
        self._socket.send(token.encode())
        loop = asyncio.get_running_loop()
        while not (line := (await loop.sock_recv(self._socket, LARGEST_DATAGRAM)).decode()).endswith(f" {token}"):
            pass  # a late answer
        return line


class SctpConnectionChannel(TcpChannel):
    """An SCTP association of the kernel, used like a TCP connection.

    The socket is bound to one address. The INIT of a socket that is bound to all addresses lists them all, and NAT does
    not translate that list.
    """

    protocol = association.IPPROTO_SCTP

    def __init__(self, probe: Probe) -> None:
        """Open and bind the socket, and a raw socket for ICMP errors, which an SCTP socket does not queue."""
        source = probe.source or source_address(probe.to.ip)
        super().__init__(replace(probe, source=source, source_port=probe.source_port or next(_fresh_ports)))
        self._errors = socket.socket(
            self._socket.family, socket.SOCK_RAW | socket.SOCK_NONBLOCK, association.IPPROTO_SCTP
        )
        queue_icmp_errors(self._errors)
        if source:
            # Otherwise `connect` chooses the source by the route, and the kernel reports no errors for another one.
            self._errors.bind((str(source), 0))

    def close(self) -> None:
        """Close both sockets."""
        super().close()
        self._errors.close()

    async def _connect(self) -> None:
        self._errors.connect((self._to[0], 0))
        refusal: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        connecting = asyncio.create_task(super()._connect())

        def look() -> None:
            with suppress(BlockingIOError):
                self._errors.recv(LARGEST_DATAGRAM)  # a raw socket receives the packets of other sockets as well
            if (errors := self._icmp_errors()) and not refusal.done():
                refusal.set_exception(errors[0])

        # On a single processor the ICMP message arrives while the kernel still sends the INIT and owns the socket. The
        # socket then ignores it and retries until it gives up (net/sctp/input.c, sctp_v4_err_handle).
        asyncio.get_running_loop().add_reader(self._errors, look)
        try:
            await asyncio.wait((connecting, refusal), return_when=asyncio.FIRST_COMPLETED)
            await (refusal if refusal.done() else connecting)
        finally:
            asyncio.get_running_loop().remove_reader(self._errors)
            connecting.cancel()
            refusal.cancel()

    def _icmp_errors(self) -> list[IcmpError]:
        own = self._socket.getsockname()[1]
        return [icmp for icmp in queued_icmp_errors(self._errors) if association.quoted_source_port(icmp.quoted) == own]


class SctpInitChannel(Channel):
    """A raw socket that sends INIT chunks and receives all SCTP packets from the server."""

    kind = socket.SOCK_RAW
    protocol = association.IPPROTO_SCTP

    def __init__(self, probe: Probe) -> None:
        """Open and bind the socket; a raw socket ignores the port."""
        super().__init__(probe)
        self._port = probe.to.port
        self._source_port = probe.source_port or next(_raw_ports)

    async def _connect(self) -> None:
        self._socket.connect((self._to[0], 0))

    async def _ask(self, *, is_first: bool) -> str:  # noqa: ARG002 - every INIT is a question
        tag = random.getrandbits(32) | 1  # 0 is not allowed
        self._socket.send(association.encode(association.initial(self._source_port, self._port, tag)))
        while True:
            packet = await self._packet()
            if packet is None or (packet.port, packet.source_port) != (self._source_port, self._port):
                continue  # for another probe of this host: every raw socket receives all packets
            if packet.verification_tag == tag and packet.chunk == association.ABORT:
                raise ConnectionRefusedError(errno.ECONNREFUSED, "ABORT")
            if packet.verification_tag == tag and packet.chunk == association.INIT_ACK:
                return packet.cookie.decode()

    async def _packet(self) -> association.Packet | None:
        try:
            data = await asyncio.get_running_loop().sock_recv(self._socket, LARGEST_DATAGRAM)
        except OSError as error:
            queued = queued_icmp_errors(self._socket)
            own = self._own(queued)
            if queued and not own:
                return None
            raise (own[0] if own else error) from None
        return association.decode(without_ip_header(self._socket, data))

    def _icmp_errors(self) -> list[IcmpError]:
        return self._own(queued_icmp_errors(self._socket))

    def _own(self, errors: list[IcmpError]) -> list[IcmpError]:
        # Every raw socket connected to the address gets the errors, and a socket that is not connected yet gets all of
        # its host; the quoted packet has the source port.
        return [icmp for icmp in errors if association.quoted_source_port(icmp.quoted) == self._source_port]


_CHANNELS: dict[Protocol, type[Channel]] = {
    Protocol.TCP: TcpChannel,
    Protocol.UDP: UdpChannel,
    # A kernel with SCTP answers INITs itself, and aborts associations that it did not start.
    Protocol.SCTP: SctpConnectionChannel if HAS_SCTP else SctpInitChannel,
}
