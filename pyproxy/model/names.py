"""Names of objects and of Service ports, written as the API and kube-proxy write them."""

from collections.abc import Mapping
from enum import Enum

from msgspec import Struct


class Protocol(Enum):
    """A transport protocol of a Service port; the value is its name in iptables and /etc/protocols."""

    TCP = "tcp"
    UDP = "udp"
    SCTP = "sctp"

    @property
    def number(self) -> int:
        """Return the number in the IP header (IANA protocol numbers)."""
        return _PROTOCOL_NUMBERS[self]

    # Members are compared by identity. Enum's own hash is Python code, and names of Service ports are hashed very often.
    __hash__ = object.__hash__

    def __lt__(self, other: "Protocol") -> bool:
        return self.value < other.value


# IANA's "Assigned Internet Protocol Numbers".
_PROTOCOL_NUMBERS = {Protocol.TCP: 6, Protocol.UDP: 17, Protocol.SCTP: 132}
PROTOCOLS: Mapping[int, Protocol] = {number: protocol for protocol, number in _PROTOCOL_NUMBERS.items()}
"""By number."""


class NamespacedName(Struct, frozen=True, order=True, gc=False, cache_hash=True):
    """Namespace and name of an object; the namespace of a cluster-wide object is empty."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


class ServicePortName(Struct, frozen=True, order=True, gc=False, cache_hash=True):
    """The identity of one port of one Service: plans, quarantine and rule listings are per Service port."""

    service: NamespacedName
    port: str
    """Name of the port; empty if it is the only port and has no name."""
    protocol: Protocol

    def __str__(self) -> str:
        """Return ``ns/name`` or ``ns/name:port`` without the protocol, as kube-proxy writes it in comments and hashes."""
        return f"{self.service}:{self.port}" if self.port else str(self.service)
