"""The state of the node on which the settings of a mode depend, and the settings that all modes have."""

from collections.abc import Collection
from dataclasses import dataclass

from pyproxy.model.address import Family, Network
from pyproxy.model.node import LocalTraffic, Node


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeContext:
    """This node and its cluster at one moment."""

    node: Node
    local_ips: Collection[bytes] = frozenset()
    """Addresses of the node; empty if no rule depends on them."""
    service_cidrs: tuple[Network, ...] | None = None
    """Ranges of cluster IPs; None if they are not known yet."""

    def service_cidrs_of(self, family: Family) -> tuple[Network, ...] | None:
        """Return the ranges of cluster IPs of a family; None if they are not known yet."""
        if self.service_cidrs is None:
            return None
        return tuple(network for network in self.service_cidrs if network.family is family)


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilySettings:
    """The settings of one family that all modes have; each mode adds its own."""

    family: Family
    # One bit, tested with a mask: other programs (network plugins) use the other bits of the mark.
    masquerade_mark: int = 0x4000
    """Packet mark of packets to masquerade; one bit."""
    masquerade_all: bool = False
    """Whether all traffic to cluster IPs is masqueraded, whatever its source."""
    local_traffic: LocalTraffic | None = None
    """Matches packets from pods of this node; None if there is no way to recognize them."""

    @property
    def mark(self) -> str:
        """Return the mark as value and mask."""
        return f"{self.masquerade_mark:#x}/{self.masquerade_mark:#x}"
