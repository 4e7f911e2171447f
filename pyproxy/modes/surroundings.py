"""What the settings of a mode depend on besides the configuration."""

from collections.abc import Collection
from dataclasses import dataclass

from pyproxy.model.address import Family, Network
from pyproxy.model.node import Node


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
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
