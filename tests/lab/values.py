"""Probes and their outcomes: plain immutable values that are pickled between processes."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TypeAlias, TypedDict, Unpack

IPAddress: TypeAlias = IPv4Address | IPv6Address

DEFAULT_TIMEOUT_SECONDS = 0.5
"""Shorter than the second after which the kernel retransmits a SYN, so that one lost SYN is one TIMEOUT."""


class LabError(Exception):
    """An error of the lab itself. Errors of the network are an `Outcome`, never an exception."""


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
        """Return the address and port in the form of URLs."""
        return f"[{self.ip}]:{self.port}" if self.ip.version == 6 else f"{self.ip}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> SocketAddress:
        """Parse what `str` returns."""
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
    """The line that every server answers with: its name, the address it was reached at, and the client's address."""

    server: str
    reached: SocketAddress
    client: SocketAddress

    def __str__(self) -> str:
        """Return the line, without its line end."""
        return f"{self.server} {self.reached} {self.client}"

    @classmethod
    def parse(cls, line: str) -> Identity:
        """Parse the line; words after the third echo what the client sent."""
        server, reached, client, *_ = line.split()
        return cls(server, SocketAddress.parse(reached), SocketAddress.parse(client))


class ProbeOptions(TypedDict, total=False):
    """The optional properties of a probe."""

    source: str | IPAddress
    source_port: int
    timeout_seconds: float


@dataclass(frozen=True, slots=True)
class Probe:
    """One request to send from a host."""

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
    """The result of a probe, as the client sees it."""

    REPLY = "reply"
    """A server answered."""
    REFUSED = "refused"
    """Refused immediately: see `Outcome.refused_by`."""
    TIMEOUT = "timeout"
    """No answer: the question or the answer was dropped."""
    UNREACHABLE = "unreachable"
    """No route, or an ICMP error other than port unreachable: see `Outcome.error`."""


class RefusedBy(enum.Enum):
    """How a connection was refused."""

    RESET = "reset"
    """By the protocol: a TCP RST, an SCTP ABORT, or a connection closed before the expected line (EPIPE)."""
    PORT_UNREACHABLE = "port unreachable"
    """By ICMP port unreachable, from a REJECT rule or from a host without a UDP socket on that port."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one probe."""

    verdict: Verdict
    identity: Identity | None = None
    """The answer; None unless the verdict is REPLY."""
    refused_by: RefusedBy | None = None
    """None unless the verdict is REFUSED."""
    error: str = ""
    """The kernel's name for the error, such as ECONNREFUSED; empty for a reply and for a time-out."""

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
        """The client's address as the server saw it; an address of the node if the packet was masqueraded."""
        return self.identity.client.ip if self.identity else None

    def without_client_port(self) -> Outcome:
        """Return the outcome without the client's port, which differs between two sends of the same packet."""
        if self.identity is None:
            return self
        client = replace(self.identity.client, port=0)
        return replace(self, identity=replace(self.identity, client=client))

    def __str__(self) -> str:
        """Return a short description, for failure messages and the demo."""
        if self.identity:
            return f"{self.identity.server} at {self.identity.reached} sees {self.identity.client}"
        detail = self.refused_by.value if self.refused_by else self.error
        return f"{self.verdict.value} ({detail})" if detail else self.verdict.value


@dataclass(frozen=True, slots=True)
class LoadFailure:
    """A request of a load that got no answer."""

    at_seconds: float
    """Seconds since the load was started."""
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class LoadReport:
    """The results of a load so far."""

    requests: int
    """Completed requests; requests in flight are not counted."""
    replies: Mapping[str, int] = field(default_factory=dict)
    """The number of answers by server name."""
    failures: tuple[LoadFailure, ...] = ()
