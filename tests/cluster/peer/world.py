"""The hosts that packets come from and go to, in both labs alike.

Law: names and addresses, and what both labs are given beyond their plan: further addresses of hosts.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_network

from tests.lab import CLUSTER_CIDRS, EXTERNAL_CIDRS, SEGMENT, IPAddress, Lab, Plan, Shape
from tests.lab.shape import ExternalHostPlan, IPNetwork, NodePlan, plan

VERSIONS = (4, 6)
FAMILIES = ("IPv4", "IPv6")
PORT = 8080
"""Every pod and node, and the database, answers here in all protocols."""
SECOND_PORT = 9090
"""And here."""
SHAPE = Shape(nodes=2, pods_per_node=3)
PLAN: Plan = plan(SHAPE)
_ON_SEGMENT: tuple[NodePlan | ExternalHostPlan, ...] = (*PLAN.nodes, *PLAN.external_hosts)
_PODS = [pod for node in PLAN.nodes for pod in node.pods]
ADDRESSES = {host.name: host.addresses for host in _ON_SEGMENT} | {pod.name: pod.addresses for pod in _PODS}
SECOND_ADDRESSES = {host.name: host.second_addresses for host in _ON_SEGMENT}
NODE_OF = {pod.name: node.name for node in PLAN.nodes for pod in node.pods} | {
    node.name: node.name for node in PLAN.nodes
}
"""Where each pod is, and each server on the network of its node."""
POD_BRIDGE = {node.name: node.gateways for node in PLAN.nodes}

CLUSTER_CIDR_FLAG = f"--cluster-cidr={','.join(map(str, CLUSTER_CIDRS))}"

CLIENTS = 48
"""How many further addresses each host of the crowd has: as many clients as affinity to three endpoints takes."""
_FIRST_NUMBERS = {"node1": 16, "outside1": 128, "client-pod": 128, "pod2-3": 128}
CROWD = tuple(_FIRST_NUMBERS)
"""Hosts that can be many clients."""
DISGUISE = (ip_network("10.244.200.0/24"), ip_network("fd00:10:244:c8::/64"))
"""A pod range of no node: who sends from there looks like a pod to those who go by addresses."""
_DISGUISED = tuple(network.network_address + 7 for network in DISGUISE)


@dataclass(frozen=True, slots=True)
class Source:
    """A host that sends, and from which of its addresses."""

    host: str
    bound: tuple[IPAddress, ...] = ()
    """In each family the address to send from; empty leaves it to the route."""
    remark: str = ""

    def __str__(self) -> str:
        """Write it for a person."""
        return f"{self.host}{self.remark}"

    def address(self, version: int) -> IPAddress | None:
        """Return the address to bind to, or None."""
        return self.bound[VERSIONS.index(version)] if self.bound else None


CORE = tuple(map(Source, ("client-pod", "pod1-1", "pod2-3", "node1", "node2", "outside1")))
"""Pods of both nodes, of which one is mostly an endpoint itself, the nodes, and a client outside the cluster."""
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
    """Return the addresses of a number in the ranges that the world routes to a node, IPv4 first."""
    return [str(cidr.network_address + number) for cidr in EXTERNAL_CIDRS]


def crowd(host: str, version: int) -> list[IPAddress]:
    """Return the further addresses of a host."""
    network = _networks(host)[VERSIONS.index(version)]
    # Hosts of the lab have their decimal numbers in hexadecimal in IPv6; there is room elsewhere.
    first = _FIRST_NUMBERS[host] + (0 if version == 4 else 0x1000)
    return [network.network_address + first + number for number in range(CLIENTS)]


def equip(lab: Lab) -> None:
    """Give the hosts of a lab what they have beyond their plan, and let all that can be endpoints answer."""
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
    # Deprecated: nobody sends from it without being asked to.
    options = " nodad preferred_lft 0" if address.version == 6 else ""
    return f"address add {address}/{address.max_prefixlen} dev eth0{options}"
