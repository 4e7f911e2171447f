"""The hosts that send and receive packets, equal in both labs: names, addresses, and additional addresses."""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_network

from tests.lab import CLUSTER_CIDRS, EXTERNAL_CIDRS, SEGMENT, IPAddress, Lab, Plan, Shape
from tests.lab.shape import ExternalHostPlan, IPNetwork, NodePlan, plan

VERSIONS = (4, 6)
FAMILIES = ("IPv4", "IPv6")
PORT = 8080
"""Every pod and node, and the database, serves this port in all protocols."""
SECOND_PORT = 9090
"""A second port that all of them serve."""
SHAPE = Shape(nodes=2, pods_per_node=3)
PLAN: Plan = plan(SHAPE)
_ON_SEGMENT: tuple[NodePlan | ExternalHostPlan, ...] = (*PLAN.nodes, *PLAN.external_hosts)
_PODS = [pod for node in PLAN.nodes for pod in node.pods]
ADDRESSES = {host.name: host.addresses for host in _ON_SEGMENT} | {pod.name: pod.addresses for pod in _PODS}
SECOND_ADDRESSES = {host.name: host.second_addresses for host in _ON_SEGMENT}
NODE_OF = {pod.name: node.name for node in PLAN.nodes for pod in node.pods} | {
    node.name: node.name for node in PLAN.nodes
}
"""The node of each pod, and of each server on the network of a node."""
POD_BRIDGE = {node.name: node.gateways for node in PLAN.nodes}

CLUSTER_CIDR_FLAG = f"--cluster-cidr={','.join(map(str, CLUSTER_CIDRS))}"

CLIENTS = 48
"""The number of additional addresses of each host of the crowd: enough clients for affinity to three endpoints."""
_FIRST_NUMBERS = {"node1": 16, "outside1": 128, "client-pod": 128, "pod2-3": 128}
CROWD = tuple(_FIRST_NUMBERS)
"""Hosts with many client addresses."""
DISGUISE = (ip_network("10.244.200.0/24"), ip_network("fd00:10:244:c8::/64"))
"""A pod CIDR of no node: its addresses look like those of a pod."""
_DISGUISED = tuple(network.network_address + 7 for network in DISGUISE)


@dataclass(frozen=True, slots=True)
class Source:
    """A sending host, and the source address that it uses."""

    host: str
    bound: tuple[IPAddress, ...] = ()
    """The source address in each family; empty if the route chooses it."""
    remark: str = ""

    def __str__(self) -> str:
        """Return a readable description."""
        return f"{self.host}{self.remark}"

    def address(self, version: int) -> IPAddress | None:
        """Return the address to bind to, or None."""
        return self.bound[VERSIONS.index(version)] if self.bound else None


CORE = tuple(map(Source, ("client-pod", "pod1-1", "pod2-3", "node1", "node2", "outside1")))
"""Pods of both nodes, one of which is usually an endpoint itself, the nodes, and an external client."""
FURTHER = (
    Source("pod1-2"),
    Source("pod2-1"),
    Source("outside2"),
    Source("database"),
    Source("outside1", SECOND_ADDRESSES["outside1"], "'"),
    Source("outside1", _DISGUISED, " disguised as a pod"),
    Source("node1", SECOND_ADDRESSES["node1"], "'"),
    Source("node1", POD_BRIDGE["node1"], " from its pod bridge"),
)


def public(number: int) -> list[str]:
    """Return the addresses of a number in the ranges that external hosts route to a node, IPv4 first."""
    return [str(cidr.network_address + number) for cidr in EXTERNAL_CIDRS]


def crowd(host: str, version: int) -> list[IPAddress]:
    """Return the additional addresses of a host."""
    network = _networks(host)[VERSIONS.index(version)]
    # In IPv6, hosts of the lab use their decimal number as hex digits; these addresses do not overlap with them.
    first = _FIRST_NUMBERS[host] + (0 if version == 4 else 0x1000)
    return [network.network_address + first + number for number in range(CLIENTS)]


def equip(lab: Lab) -> None:
    """Add the additional addresses and routes to the hosts of a lab, and start servers on all possible endpoints."""
    for name in CROWD:
        _configure(lab, name, (_add(address) for version in VERSIONS for address in crowd(name, version)))
    _configure(lab, "outside1", map(_add, _DISGUISED))
    back = [f"route add {network} via {lab['outside1'].address(network.version)}" for network in DISGUISE]
    for node in lab.nodes:
        _configure(lab, node.name, back)
    for host in (*lab.pods, *lab.nodes, lab.database):
        host.serve(tcp=[PORT, SECOND_PORT], udp=[PORT, SECOND_PORT], sctp=[PORT, SECOND_PORT])


def _networks(host: str) -> tuple[IPNetwork, ...]:
    by_pod = {pod.name: node.pod_cidrs for node in PLAN.nodes for pod in node.pods}
    return by_pod.get(host, SEGMENT)


def _configure(lab: Lab, host: str, lines: Iterable[str]) -> None:
    lab[host].run("ip", "-batch", "-", stdin="".join(f"{line}\n" for line in lines))


def _add(address: IPAddress) -> str:
    # Deprecated, so that it is a source address only if a socket is bound to it.
    options = " nodad preferred_lft 0" if address.version == 6 else ""
    return f"address add {address}/{address.max_prefixlen} dev eth0{options}"
