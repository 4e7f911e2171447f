"""What happens to the first packet of a connection, as an interpreter of one mode's rules finds it. No packet is sent.

Each mode has an interpreter in its ``explain`` module. It reads rules, elements or virtual servers, from files or from
the kernel, and knows nothing of Services or plans, so what it finds can be compared with what was intended.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import Enum
from fractions import Fraction
from typing import NamedTuple

from pyproxy.model.address import is_loopback, parse_network
from pyproxy.model.endpoint import Endpoint
from pyproxy.model.names import Protocol


@dataclass(frozen=True, slots=True)
class Packet:
    """The first packet of a connection, as it is before any translation."""

    source: bytes
    destination: bytes
    protocol: Protocol
    port: int
    in_interface: str = ""
    """The interface through which it arrives; empty: this node sends it."""


@dataclass(frozen=True, slots=True)
class Host:
    """The node that has the rules, as far as routing depends on it."""

    ips: frozenset[bytes]
    """Its addresses apart from loopback ones."""

    def is_local(self, ip: bytes) -> bool:
        """Return whether the kernel delivers packets for an address to the node itself."""
        return ip in self.ips or is_loopback(ip)

    def address_type(self, ip: bytes) -> str:
        """Return the type of an address in the routing tables, in the words of ``nft``."""
        if self.is_local(ip):
            return "local"
        if any(ip in network for network in _MULTICASTS):
            return "multicast"
        # The broadcast addresses of the networks of the node need their prefix lengths, which are not known here. Only
        # 255.255.255.255 is recognized.
        return "broadcast" if ip == b"\xff" * 4 else "unicast"


_MULTICASTS = (parse_network("224.0.0.0/4"), parse_network("ff00::/8"))


class Fate(Enum):
    """How it ends; values are those of JSON output."""

    FORWARDED = "forwarded"
    """The destination was changed to an endpoint."""
    UNCHANGED = "unchanged"
    """The packet continues to its original destination: no Service has that address and port."""
    REJECTED = "rejected"
    DROPPED = "dropped"


class Step(NamedTuple):
    """One rule or element that decided something."""

    hook: str
    """Hook or phase, such as ``prerouting``."""
    priority: int | None
    """Priority of the base chain; None where the mode has none (IPVS)."""
    place: str
    """Chain, set, map or virtual server."""
    rule: str
    """The rule or element as the mode's own tool prints it."""


@dataclass(frozen=True, slots=True)
class Path:
    """One way that the packet can take."""

    share: Fraction
    """Its probability; those of all paths of a packet are 1 together."""
    fate: Fate
    steps: tuple[Step, ...]
    endpoint: Endpoint | None = None
    """Set if forwarded."""
    is_masqueraded: bool = False
    """The endpoint sees an address of this node as the source."""
    affinity_seconds: int | None = None
    """For how long the client stays with its endpoint; None without session affinity."""
    affinity_entry: str = ""
    """The entry in the kernel that already connects the client with this endpoint; empty: there is none."""
    is_certain: bool = True
    """False: a rule on the way could not be evaluated and was skipped; a step names it."""


Interpreter = Callable[[Packet, Host], tuple[Path, ...]]
"""Returns every way that a packet can take, the most probable first."""

NOT_EVALUATED = "cannot be evaluated: "
"""The prefix of `Step.rule` for a rule that was skipped."""


def merged(paths: Iterable[Path]) -> tuple[Path, ...]:
    """Return paths with those that differ in their probability only made one, the most probable first."""
    shares: dict[Path, Fraction] = {}
    for path in paths:
        key = replace(path, share=Fraction(0))
        shares[key] = shares.get(key, Fraction(0)) + path.share
    found = [replace(path, share=share) for path, share in shares.items()]
    return tuple(sorted(found, key=lambda path: path.share, reverse=True))
