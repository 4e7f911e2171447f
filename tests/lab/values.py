"""What a probe asks and what came back.

Law: plain immutable values that travel between processes; no socket, no clock, no process here.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TypeAlias, TypedDict, Unpack

IPAddress: TypeAlias = IPv4Address | IPv6Address

DEFAULT_TIMEOUT_SECONDS = 0.5
"""Shorter than the kernel's one second before it repeats a SYN, so that one lost first packet is one TIMEOUT."""


class LabError(Exception):
    """The lab itself failed; what a probe meets on its way is an `Outcome`, never an exception."""


class Protocol(enum.Enum):
    """The protocols a Service port may have, spelled as the API spells them."""

    TCP = "TCP"
    UDP = "UDP"
    SCTP = "SCTP"


@dataclass(frozen=True, slots=True, order=True)
class SocketAddress:
    """An address and a port; IPv6 is written in brackets."""

    ip: IPAddress
    port: int

    def __str__(self) -> str:
        """Write it as URLs do."""
        return f"[{self.ip}]:{self.port}" if self.ip.version == 6 else f"{self.ip}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> SocketAddress:
        """Read what `str` wrote."""
        host, _, port = text.rpartition(":")
        return cls(ip_address(host.strip("[]")), int(port))


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports a server answers on, in both families."""

    tcp: tuple[int, ...] = ()
    udp: tuple[int, ...] = ()
    sctp: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Identity:
    """The one line every server answers with: who it is, where it was reached, and whom it sees."""

    server: str
    reached: SocketAddress
    client: SocketAddress

    def __str__(self) -> str:
        """Write the line, without its line end."""
        return f"{self.server} {self.reached} {self.client}"

    @classmethod
    def parse(cls, line: str) -> Identity:
        """Read the line; words after the third are an echo of what the client sent."""
        server, reached, client, *_ = line.split()
        return cls(server, SocketAddress.parse(reached), SocketAddress.parse(client))


class ProbeOptions(TypedDict, total=False):
    """What a probe may leave open."""

    source: str | IPAddress
    source_port: int
    timeout_seconds: float


@dataclass(frozen=True, slots=True)
class Probe:
    """One request to send from some host."""

    protocol: Protocol
    to: SocketAddress
    source: IPAddress | None = None
    """The address to bind to; None lets the kernel choose by route."""
    source_port: int = 0
    """The port to bind to; 0 lets the kernel choose."""
    timeout_seconds: float | None = None
    """How long to wait for the answer; None means as long as the lab says."""


def tcp(address: str | IPAddress, port: int, **options: Unpack[ProbeOptions]) -> Probe:
    """Return a probe that connects and reads the server's line."""
    return _probe(Protocol.TCP, address, port, options)


def udp(address: str | IPAddress, port: int, **options: Unpack[ProbeOptions]) -> Probe:
    """Return a probe that sends one datagram from a connected socket and reads the answer."""
    return _probe(Protocol.UDP, address, port, options)


def sctp(address: str | IPAddress, port: int, **options: Unpack[ProbeOptions]) -> Probe:
    """Return a probe that sends an INIT chunk and reads the INIT ACK: the first round trip of an association."""
    return _probe(Protocol.SCTP, address, port, options)


def _probe(protocol: Protocol, address: str | IPAddress, port: int, options: ProbeOptions) -> Probe:
    source = options.get("source")
    return Probe(
        protocol,
        SocketAddress(ip_address(address), port),
        source=None if source is None else ip_address(source),
        source_port=options.get("source_port", 0),
        timeout_seconds=options.get("timeout_seconds"),
    )


class Verdict(enum.Enum):
    """What became of a probe, as its client saw it."""

    REPLY = "reply"
    """A server answered."""
    REFUSED = "refused"
    """Somebody said no at once: see `Outcome.refused_by`."""
    TIMEOUT = "timeout"
    """Silence: dropped on the way there or back."""
    UNREACHABLE = "unreachable"
    """No route, or an ICMP error other than port unreachable: see `Outcome.error`."""


class RefusedBy(enum.Enum):
    """How a refusal was told."""

    RESET = "reset"
    """By the peer's own protocol: a TCP RST, an SCTP ABORT, or the end of a connection where a line was due (EPIPE)."""
    PORT_UNREACHABLE = "port unreachable"
    """By ICMP port unreachable: from a REJECT rule, or from a host without a UDP socket on that port."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one probe met."""

    verdict: Verdict
    identity: Identity | None = None
    """The answer; None unless the verdict is REPLY."""
    refused_by: RefusedBy | None = None
    """None unless the verdict is REFUSED."""
    error: str = ""
    """The kernel's name for the error, such as ECONNREFUSED; empty for an answer and for silence."""

    @property
    def server(self) -> str | None:
        """The name of the server that answered."""
        return self.identity.server if self.identity else None

    @property
    def reached(self) -> SocketAddress | None:
        """The address and port at which the server was reached, after all translation."""
        return self.identity.reached if self.identity else None

    @property
    def client(self) -> SocketAddress | None:
        """The client's address and port as the server saw them, after all translation."""
        return self.identity.client if self.identity else None

    @property
    def client_ip(self) -> IPAddress | None:
        """The client's address as the server saw it: the node's own if the packet was masqueraded."""
        return self.identity.client.ip if self.identity else None

    def without_client_port(self) -> Outcome:
        """Return what must be equal when the same packet is sent twice, or in two labs."""
        if self.identity is None:
            return self
        client = replace(self.identity.client, port=0)
        return replace(self, identity=replace(self.identity, client=client))

    def __str__(self) -> str:
        """Write it in a few words, for failure messages and for the demo."""
        if self.identity:
            return f"{self.identity.server} at {self.identity.reached} sees {self.identity.client}"
        detail = self.refused_by.value if self.refused_by else self.error
        return f"{self.verdict.value} ({detail})" if detail else self.verdict.value


@dataclass(frozen=True, slots=True)
class LoadFailure:
    """One request of a load that got no answer."""

    at_seconds: float
    """Since the load was started."""
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a load met so far."""

    requests: int
    """Requests that are over; those still in flight are not counted."""
    replies: Mapping[str, int] = field(default_factory=dict)
    """Answers by the server's name."""
    failures: tuple[LoadFailure, ...] = ()
