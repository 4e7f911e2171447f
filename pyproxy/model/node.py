"""This node, as far as its packet path and its health depend on it."""

from dataclasses import dataclass, replace
from enum import Enum
from typing import Self

from pyproxy.model.address import Family, Network, family_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """The agent's own Node object."""

    name: str
    ips: tuple[bytes, ...] = ()
    """InternalIPs, then ExternalIPs, each in the order of the status; the first of a family is the node's IP."""
    pod_cidrs: tuple[Network, ...] = ()
    zone: str = ""
    """Label ``topology.kubernetes.io/zone``; empty means none."""
    is_eligible: bool = True
    """False: on its way out, and load balancers should know; no packet path depends on it."""

    def as_packets_see_it(self) -> Self:
        """Return the Node without what no packet path depends on."""
        return self if self.is_eligible else replace(self, is_eligible=True)

    def ip(self, family: Family) -> bytes | None:
        """Return the node's IP of a family, or None."""
        return next((ip for ip in self.ips if family_of(ip) is family), None)

    def pod_cidr(self, family: Family) -> Network | None:
        """Return the first pod range of a family, or None."""
        return next((cidr for cidr in self.pod_cidrs if cidr.family is family), None)


class DetectLocalMode(Enum):
    """How to tell a pod's packet; values as ``--detect-local-mode`` takes them."""

    CLUSTER_CIDR = "ClusterCIDR"
    NODE_CIDR = "NodeCIDR"
    BRIDGE_INTERFACE = "BridgeInterface"
    INTERFACE_NAME_PREFIX = "InterfaceNamePrefix"


@dataclass(frozen=True, slots=True)
class LocalTraffic:
    """A test for packets of pods: by source range, or by the interface they come in on. Exactly one is set."""

    cidr: Network | None = None
    interface: str = ""
    """Name of an interface."""
    interface_prefix: str = ""
    """Beginning of the names of interfaces."""
