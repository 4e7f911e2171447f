"""The agent's own Node, reduced to the fields that rules and health depend on."""

from dataclasses import dataclass, replace
from enum import Enum
from typing import Self

from pyproxy.model.address import Family, Network, family_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """The agent's own Node object."""

    name: str
    ips: tuple[bytes, ...] = ()
    """InternalIPs, then ExternalIPs, each in the order of the status. The first of a family is the node's IP."""
    pod_cidrs: tuple[Network, ...] = ()
    zone: str = ""
    """Label ``topology.kubernetes.io/zone``; empty means none."""
    is_eligible: bool = True
    """False if the node is being removed, so that load balancers should leave; rules do not depend on it."""

    def as_packets_see_it(self) -> Self:
        """Return the Node without the fields that rules do not depend on."""
        return self if self.is_eligible else replace(self, is_eligible=True)

    def ip(self, family: Family) -> bytes | None:
        """Return the node's IP of a family, or None."""
        return next((ip for ip in self.ips if family_of(ip) is family), None)

    def pod_cidr(self, family: Family) -> Network | None:
        """Return the first pod range of a family, or None."""
        return next((cidr for cidr in self.pod_cidrs if cidr.family is family), None)


class DetectLocalMode(Enum):
    """How packets from pods of this node are recognized; values as in ``--detect-local-mode``."""

    CLUSTER_CIDR = "ClusterCIDR"
    NODE_CIDR = "NodeCIDR"
    BRIDGE_INTERFACE = "BridgeInterface"
    INTERFACE_NAME_PREFIX = "InterfaceNamePrefix"


@dataclass(frozen=True, slots=True)
class LocalTraffic:
    """Matches packets from pods of this node, by source range or by input interface. Exactly one field is set."""

    cidr: Network | None = None
    interface: str = ""
    """Name of the interface."""
    interface_prefix: str = ""
    """Prefix of the names of the interfaces."""
