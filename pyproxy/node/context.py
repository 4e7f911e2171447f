"""What the settings of a backend depend on besides the configuration, and what these have in common in all modes."""

from collections.abc import Collection
from dataclasses import dataclass

from pyproxy.model.address import Family, Network
from pyproxy.model.node import LocalTraffic, Node


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeContext:
    """This node and its cluster, at one moment."""

    node: Node
    local_ips: Collection[bytes] = frozenset()
    """Addresses that the node has at the moment; empty where nothing depends on them."""
    service_cidrs: tuple[Network, ...] | None = None
    """Where cluster IPs come from; None as long as nobody knows."""

    def service_cidrs_of(self, family: Family) -> tuple[Network, ...] | None:
        """Return where cluster IPs of a family come from, or None."""
        if self.service_cidrs is None:
            return None
        return tuple(network for network in self.service_cidrs if network.family is family)


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilySettings:
    """What is the same in every mode; each mode adds its own."""

    family: Family
    masquerade_mark: int = 0x4000
    """The bit of the packet mark that says: masquerade this packet."""
    masquerade_all: bool = False
    """Masquerade all traffic to cluster IPs, wherever it comes from."""
    local_traffic: LocalTraffic | None = None
    """How to tell a pod's packet; None: nothing is known to be a pod's."""

    @property
    def mark(self) -> str:
        """Return the mark as value and mask."""
        return f"{self.masquerade_mark:#x}/{self.masquerade_mark:#x}"
