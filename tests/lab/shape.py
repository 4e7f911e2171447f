"""The hosts of a lab and their addresses.

Pure: the same shape always gives the same names and addresses, so that two labs can be compared.

    segment 172.18.0.0/24, fd00:172:18::/64          every host on it also has the same host number in
        .1        router: forwards nothing           172.19.0.0/24 and fd00:172:19::/64
        .11 ...   node1 ...    pods in 10.244.1.0/24, fd00:10:244:1::/64 ...
        .101 ...  outside1 ... clients that reach the Service ranges through node1 ...
        .200      database     a host outside the cluster
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import TypeAlias

from .values import IPAddress

IPNetwork: TypeAlias = IPv4Network | IPv6Network

SEGMENT = (ip_network("172.18.0.0/24"), ip_network("fd00:172:18::/64"))
SECOND_SEGMENT = (ip_network("172.19.0.0/24"), ip_network("fd00:172:19::/64"))
CLUSTER_CIDRS = (ip_network("10.244.0.0/16"), ip_network("fd00:10:244::/48"))
SERVICE_CIDRS = (ip_network("10.96.0.0/16"), ip_network("fd00:10:96::/112"))
EXTERNAL_CIDRS = (ip_network("203.0.113.0/24"), ip_network("2001:db8:113::/64"))
"""External and load balancer addresses; hosts outside the cluster route them to a node, as a load balancer would."""

ROUTER_NUMBER = 1
FIRST_NODE_NUMBER = 11
FIRST_OUTSIDE_NUMBER = 101
DATABASE_NUMBER = 200
FIRST_POD_NUMBER = 11
GATEWAY_NUMBER = 1
MOST_NODES = 50
MOST_PODS = 80


@dataclass(frozen=True, slots=True)
class Shape:
    """The parameters of a lab."""

    nodes: int = 2
    pods_per_node: int = 2
    ipv4: bool = True
    ipv6: bool = True

    def __post_init__(self) -> None:
        """Reject a shape that does not fit the address plan."""
        if not (1 <= self.nodes <= MOST_NODES and 0 <= self.pods_per_node <= MOST_PODS and (self.ipv4 or self.ipv6)):
            message = f"the address plan does not support this shape: {self}"
            raise ValueError(message)

    @property
    def versions(self) -> tuple[int, ...]:
        """The IP versions in use, IPv4 first."""
        return (4,) * self.ipv4 + (6,) * self.ipv6


@dataclass(frozen=True, slots=True)
class PodPlan:
    """A pod: a namespace connected to the pod bridge of its node."""

    name: str
    addresses: tuple[IPAddress, ...]


@dataclass(frozen=True, slots=True)
class NodePlan:
    """A node of the cluster."""

    name: str
    addresses: tuple[IPAddress, ...]
    """The InternalIPs of its Node object, one per family."""
    second_addresses: tuple[IPAddress, ...]
    pod_cidrs: tuple[IPNetwork, ...]
    gateways: tuple[IPAddress, ...]
    """The addresses of the pod bridge, which are the gateways of its pods."""
    pods: tuple[PodPlan, ...]


@dataclass(frozen=True, slots=True)
class ExternalHostPlan:
    """A host on the segment outside the cluster."""

    name: str
    addresses: tuple[IPAddress, ...]
    second_addresses: tuple[IPAddress, ...]
    via: NodePlan | None
    """The node through which it routes Service, external and load balancer addresses; None if it has no such route."""


@dataclass(frozen=True, slots=True)
class Plan:
    """All hosts of a lab."""

    shape: Shape
    nodes: tuple[NodePlan, ...]
    external_hosts: tuple[ExternalHostPlan, ...]
    router: tuple[IPAddress, ...]


CLIENT_POD = "client-pod"
"""A pod on the first node that serves nothing."""
DATABASE = "database"


def plan(shape: Shape) -> Plan:
    """Return the hosts of a shape, with names and addresses."""
    nodes = tuple(_node(shape, number) for number in range(1, shape.nodes + 1))
    outside = (
        _external_host(shape, f"outside{number}", FIRST_OUTSIDE_NUMBER + number - 1, via=node)
        for number, node in enumerate(nodes, start=1)
    )
    database = _external_host(shape, DATABASE, DATABASE_NUMBER, via=None)
    return Plan(shape, nodes, (*outside, database), _addresses(shape, SEGMENT, ROUTER_NUMBER))


def _node(shape: Shape, number: int) -> NodePlan:
    host_number = FIRST_NODE_NUMBER + number - 1
    cidrs = (ip_network(f"10.244.{number}.0/24"), ip_network(f"fd00:10:244:{number}::/64"))
    names = [f"pod{number}-{pod}" for pod in range(1, shape.pods_per_node + 1)]
    if number == 1:
        names.append(CLIENT_POD)
    return NodePlan(
        name=f"node{number}",
        addresses=_addresses(shape, SEGMENT, host_number),
        second_addresses=_addresses(shape, SECOND_SEGMENT, host_number),
        pod_cidrs=tuple(cidr for cidr in cidrs if cidr.version in shape.versions),
        gateways=_addresses(shape, cidrs, GATEWAY_NUMBER),
        pods=tuple(
            PodPlan(name, _addresses(shape, cidrs, FIRST_POD_NUMBER + index)) for index, name in enumerate(names)
        ),
    )


def _external_host(shape: Shape, name: str, number: int, *, via: NodePlan | None) -> ExternalHostPlan:
    addresses = _addresses(shape, SEGMENT, number)
    return ExternalHostPlan(name, addresses, _addresses(shape, SECOND_SEGMENT, number), via)


def _addresses(shape: Shape, networks: tuple[IPNetwork, ...], number: int) -> tuple[IPAddress, ...]:
    """Return the host's address in each network in use; in IPv6 the hex digits are the decimal number."""
    return tuple(
        network.network_address + (number if network.version == 4 else int(str(number), 16))
        for network in networks
        if network.version in shape.versions
    )
