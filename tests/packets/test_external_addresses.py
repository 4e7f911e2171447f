"""Packets to external IPs, node ports and load balancer addresses, under both external traffic policies."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_network

import pytest

from .cluster import Cluster
from .modes import needs
from .objects import (
    ADDRESSES,
    JsonObject,
    ingress,
    node_plan,
    port,
    public,
    service,
    slices,
    terminating,
)
from .table import Row, address_of, rows

EVERY_PROTOCOL = ("TCP", "UDP", "SCTP")


def ports(node_port: int = 0) -> list[JsonObject]:
    """Return port 80 in every protocol, all with the same node port."""
    return [port(80, protocol, name=protocol.lower(), node_port=node_port) for protocol in EVERY_PROTOCOL]


def single(address: str) -> str:
    """Return the CIDR block of a single address."""
    return str(ip_network(address))


LISTED = service(
    "listed", 40, *ports(), externalIPs=[*public(20), *public(21), *map(str, node_plan("node1").second_addresses)]
)
NODE_PORT = service("node-port", 41, *ports(30080), type="NodePort")
ONE_SIDED = service("one-sided", 42, *ports(30081), type="NodePort")
NO_ENDPOINTS = service(
    "no-endpoints", 43, *ports(30082), type="LoadBalancer", externalIPs=public(22), ingress=ingress(23)
)
BALANCED = service("balanced", 44, *ports(30083), type="LoadBalancer", ingress=ingress(30))
PROXIED = service(
    "proxied",
    45,
    port(80, node_port=30085),
    type="LoadBalancer",
    ingress=[*ingress(31, ipMode="Proxy"), {"hostname": "lb.example.com"}],
)
WITHOUT_NODE_PORTS = service(
    "without-node-ports",
    46,
    port(80),
    type="LoadBalancer",
    allocateLoadBalancerNodePorts=False,
    ingress=ingress(32, ipMode="VIP"),
)
RANGED = service(
    "ranged",
    47,
    *ports(30084),
    type="LoadBalancer",
    ingress=ingress(33),
    externalIPs=public(34),
    loadBalancerSourceRanges=[*map(single, ADDRESSES["outside1"]), "10.244.1.0/24", "fd00:10:244:1::/64"],
)
RANGED_FOR_NODE = service(
    "ranged-for-node",
    48,
    port(80, node_port=30086),
    type="LoadBalancer",
    ingress=ingress(35),
    loadBalancerSourceRanges=[*map(single, ADDRESSES["node1"])],
)

LOCAL = service(
    "local-everywhere",
    50,
    *ports(30090),
    type="LoadBalancer",
    externalTrafficPolicy="Local",
    healthCheckNodePort=32090,
    externalIPs=public(40),
    ingress=ingress(41),
)
LOCAL_ON_NODE1 = service(
    "node-port-on-node1", 51, *ports(30091), type="NodePort", externalTrafficPolicy="Local", externalIPs=public(42)
)
LOCAL_EMPTY = service("node-port-empty", 52, *ports(30092), type="NodePort", externalTrafficPolicy="Local")
LOCAL_DRAINS = service(
    "node-port-drains", 53, port(80, node_port=30093), type="NodePort", externalTrafficPolicy="Local"
)
BOTH_LOCAL = service(
    "both-local",
    54,
    port(80, node_port=30094),
    type="NodePort",
    externalTrafficPolicy="Local",
    internalTrafficPolicy="Local",
)
INTERNAL_LOCAL = service(
    "internal-local", 55, port(80, node_port=30095), type="NodePort", internalTrafficPolicy="Local"
)
RANGED_LOCALLY = service(
    "ranged-locally",
    57,
    port(80, node_port=30096),
    type="LoadBalancer",
    externalTrafficPolicy="Local",
    healthCheckNodePort=32096,
    ingress=ingress(44),
    loadBalancerSourceRanges=[*map(single, ADDRESSES["outside1"]), *map(single, ADDRESSES["client-pod"])],
)
LOCAL_IPS_ONLY = service("local-ips-only", 56, port(80), externalTrafficPolicy="Local", externalIPs=public(43))

OBJECTS: list[JsonObject] = [
    *(LISTED, *slices(LISTED, "pod1-1", "pod2-1")),
    *(NODE_PORT, *slices(NODE_PORT, "pod1-1", "pod2-1")),
    *(ONE_SIDED, *slices(ONE_SIDED, "pod1-1")),
    *(NO_ENDPOINTS, *slices(NO_ENDPOINTS)),
    *(BALANCED, *slices(BALANCED, "pod1-1", "pod2-1")),
    *(PROXIED, *slices(PROXIED, "pod1-1")),
    *(WITHOUT_NODE_PORTS, *slices(WITHOUT_NODE_PORTS, "pod1-1")),
    *(RANGED, *slices(RANGED, "pod1-1", "pod2-1")),
    *(RANGED_FOR_NODE, *slices(RANGED_FOR_NODE, "pod1-1")),
    *(LOCAL, *slices(LOCAL, "pod1-1", "pod1-2", "pod2-1")),
    *(LOCAL_ON_NODE1, *slices(LOCAL_ON_NODE1, "pod1-1")),
    *(LOCAL_EMPTY, *slices(LOCAL_EMPTY)),
    *(LOCAL_DRAINS, *slices(LOCAL_DRAINS, terminating("pod1-1"), terminating("pod2-2"), "pod2-1")),
    *(BOTH_LOCAL, *slices(BOTH_LOCAL, "pod1-1", "pod2-1")),
    *(INTERNAL_LOCAL, *slices(INTERNAL_LOCAL, "pod1-1", "pod2-1")),
    *(RANGED_LOCALLY, *slices(RANGED_LOCALLY, "pod1-1", "pod2-1")),
    *(LOCAL_IPS_ONLY, *slices(LOCAL_IPS_ONLY, "pod1-1")),
]

EXTERNAL_IPS = """
outside1           public20:80/tcp       pod1-1 pod2-1       node1
outside1           public20:80/udp       pod1-1 pod2-1       node1
outside1           public20:80/sctp      pod1-1 pod2-1       node1
outside2           public21:80/tcp       pod1-1 pod2-1       node2
client-pod         public20:80/tcp       pod1-1 pod2-1       node1
pod1-1             public20:80/udp       pod1-1 pod2-1       node1
node1              public20:80/tcp       pod1-1 pod2-1       node1
outside1           node1':80/tcp         pod1-1 pod2-1       node1
outside1           node1':80/udp         pod1-1 pod2-1       node1
node1              node1':80/tcp         pod1-1 pod2-1       node1
client-pod         node1':80/sctp        pod1-1 pod2-1       node1
outside1           node1:80/tcp          reset
outside1           node1:80/udp          refused
outside2           node2':80/tcp         reset
node2              node1':53/tcp         reset
outside1           public24:80/tcp       untouched
outside1           public20:81/tcp       untouched
outside1           public22:80/tcp       refused
outside1           public22:80/udp       refused
client-pod         public22:80/sctp      refused
node1              public22:80/tcp       unserved
"""

NODE_PORTS = """
outside1           node1:30080/tcp       pod1-1 pod2-1       node1
outside1           node1:30080/udp       pod1-1 pod2-1       node1
outside1           node1:30080/sctp      pod1-1 pod2-1       node1
outside1           node2:30080/tcp       pod1-1 pod2-1       node2
client-pod         node1:30080/tcp       pod1-1 pod2-1       node1
client-pod         node2:30080/tcp       pod1-1 pod2-1       node2
node1              node1:30080/tcp       pod1-1 pod2-1       node1
node1              node2:30080/udp       pod1-1 pod2-1       node2
node1              ::1:30080/tcp         reset
pod1-1             node1:30080/tcp       pod1-1 pod2-1       node1
outside1           node2:30081/tcp       pod1-1              node2
outside1           node2:30081/sctp      pod1-1              node2
outside1           public20:30080/tcp    untouched
outside1           node1:30082/tcp       refused
outside1           node2:30082/udp       refused
outside1           node1:30082/sctp      refused
"""

NODE_PORTS_ON_SECOND_ADDRESSES = """
outside1           node1':30080/tcp      pod1-1 pod2-1       node1
outside1           node2':30080/udp      pod1-1 pod2-1       node2
outside1           node1':30090/tcp      pod1-1 pod1-2       outside1'
"""

NODE_PORTS_ON_LOCALHOST = """
node1              127.0.0.1:30080/tcp   pod1-1 pod2-1          node1
node1              127.0.0.1:30080/udp   pod1-1 pod2-1          node1
node1              127.1.2.3:30080/tcp   pod1-1 pod2-1          node1
node1              127.0.0.1:30082/tcp   refused
node1              127.0.0.1:30090/udp   pod1-1 pod1-2 pod2-1   node1
node2              127.0.0.1:30091/tcp   pod1-1                 node2
"""

LOAD_BALANCERS = """
outside1           public30:80/tcp       pod1-1 pod2-1       node1
outside1           public30:80/udp       pod1-1 pod2-1       node1
outside1           public30:80/sctp      pod1-1 pod2-1       node1
outside1           public30:81/tcp       unclaimed
outside2           public30:80/tcp       pod1-1 pod2-1       node2
client-pod         public30:80/tcp       pod1-1 pod2-1       node1
node1              public30:80/tcp       pod1-1 pod2-1       node1
outside1           node1:30083/tcp       pod1-1 pod2-1       node1
outside1           public31:80/tcp       untouched
client-pod         public31:80/tcp       untouched
outside1           public23:80/tcp       refused
outside1           public32:80/tcp       pod1-1              node1
"""

SOURCE_RANGES = """
outside1             public33:80/tcp       pod1-1 pod2-1       node1
outside1             public33:80/udp       pod1-1 pod2-1       node1
outside1             public33:80/sctp      pod1-1 pod2-1       node1
outside1@outside1'   public33:80/tcp       dropped
outside1@outside1'   public33:80/udp       dropped
outside1@outside1'   public33:80/sctp      dropped
outside2             public33:80/tcp       dropped
client-pod           public33:80/tcp       pod1-1 pod2-1       node1
pod2-2               public33:80/tcp       dropped
node1                public33:80/tcp       dropped
outside2             public34:80/tcp       pod1-1 pod2-1       node2
outside2             node1:30084/tcp       pod1-1 pod2-1       node1
client-pod           ranged:80/tcp         pod1-1 pod2-1       itself
pod2-2               ranged:80/tcp         pod1-1 pod2-1       itself
node1                public35:80/tcp       pod1-1              node1
outside1             public35:80/tcp       dropped
node2                public35:80/tcp       dropped
outside1             public44:80/tcp       pod1-1              itself
outside2             public44:80/tcp       dropped
client-pod           public44:80/tcp       pod1-1 pod2-1       itself
pod1-2               public44:80/tcp       dropped
outside2             node2:30096/tcp       pod2-1              itself
"""

LOCAL_POLICY = """
outside1           node1:30090/tcp       pod1-1 pod1-2          itself
outside1           node1:30090/udp       pod1-1 pod1-2          itself
outside1           node1:30090/sctp      pod1-1 pod1-2          itself
outside1           node2:30090/tcp       pod2-1                 itself
outside1           public40:80/tcp       pod1-1 pod1-2          itself
outside2           public40:80/udp       pod2-1                 itself
outside1           public41:80/tcp       pod1-1 pod1-2          itself
outside2           public41:80/sctp      pod2-1                 itself
client-pod         node1:30090/tcp       pod1-1 pod1-2 pod2-1   itself
client-pod         public40:80/udp       pod1-1 pod1-2 pod2-1   itself
client-pod         public41:80/tcp       pod1-1 pod1-2 pod2-1   itself
node1              node1:30090/tcp       pod1-1 pod1-2 pod2-1   node1
node2              public41:80/tcp       pod1-1 pod1-2 pod2-1   node2
client-pod         local-everywhere:80/tcp  pod1-1 pod1-2 pod2-1   itself

outside1           node1:30091/tcp       pod1-1                 itself
outside2           node2:30091/tcp       dropped
outside2           node2:30091/udp       dropped
outside2           node2:30091/sctp      dropped
outside2           public42:80/tcp       dropped
pod2-2             node2:30091/tcp       pod1-1                 itself
pod1-1             node1:30091/tcp       pod1-1                 node1
pod1-1             public42:80/udp       pod1-1                 node1
pod2-2             public42:80/udp       pod1-1                 itself
node2              node2:30091/tcp       pod1-1                 node2

outside1           node1:30092/tcp       refused
outside1           node1:30092/udp       refused
outside1           node2:30092/sctp      refused
client-pod         node1:30092/tcp       refused

outside1           node1:30093/tcp       pod1-1                 itself
outside2           node2:30093/tcp       pod2-1                 itself
client-pod         node-port-drains:80/tcp  pod2-1               itself

outside1           node1:30094/tcp       pod1-1                 itself
client-pod         node1:30094/tcp       pod1-1 pod2-1          itself
client-pod         both-local:80/tcp     pod1-1                 itself
outside1           node1:30095/tcp       pod1-1 pod2-1          node1
client-pod         internal-local:80/tcp  pod1-1                itself
outside1           public43:80/tcp       pod1-1                 itself
outside2           public43:80/tcp       dropped
"""

OWN_ADDRESS = """
node1@public35     public35:80/tcp       pod1-1                 node1
node1@public33     public33:80/tcp       dropped
"""


@pytest.fixture(scope="module", autouse=True)
def objects(cluster: Cluster) -> Iterator[None]:
    """Add the objects of this suite."""
    with cluster.having(*OBJECTS):
        yield


@rows(EXTERNAL_IPS, OBJECTS)
def test_packet_to_an_external_ip(cluster: Cluster, row: Row) -> None:
    """Only the listed external IPs lead to the Service, also if they are addresses of a node."""
    assert cluster.expected(row) == cluster.observed(row)


@rows(NODE_PORTS, OBJECTS)
def test_packet_to_a_node_port(cluster: Cluster, row: Row) -> None:
    """A node port is served on every node, with and without endpoints there."""
    assert cluster.expected(row) == cluster.observed(row)


@needs("node_ports_on_every_address")
@rows(NODE_PORTS_ON_SECOND_ADDRESSES, OBJECTS)
def test_packet_to_a_node_port_on_a_second_address(cluster: Cluster, row: Row) -> None:
    """Without --nodeport-addresses, node ports are served on every address of a node."""
    assert cluster.expected(row) == cluster.observed(row)


@needs("localhost_node_ports")
@rows(NODE_PORTS_ON_LOCALHOST, OBJECTS)
def test_packet_to_a_node_port_on_localhost(cluster: Cluster, row: Row) -> None:
    """A node reaches node ports at any IPv4 loopback address, under each traffic policy."""
    assert cluster.expected(row) == cluster.observed(row)


@rows(LOAD_BALANCERS, OBJECTS)
def test_packet_to_a_load_balancer_address(cluster: Cluster, row: Row) -> None:
    """Ingress addresses are served unless their mode is Proxy, also without node ports."""
    assert cluster.expected(row) == cluster.observed(row)


@rows(SOURCE_RANGES, OBJECTS)
def test_packet_from_inside_or_outside_the_source_ranges(cluster: Cluster, row: Row) -> None:
    """Source ranges restrict only the load balancer addresses of a Service."""
    assert cluster.expected(row) == cluster.observed(row)


@rows(LOCAL_POLICY, OBJECTS)
def test_packet_under_external_policy_local(cluster: Cluster, row: Row) -> None:
    """External clients keep their address and reach only local endpoints; pods and the node reach all endpoints."""
    assert cluster.expected(row) == cluster.observed(row)


@rows(OWN_ADDRESS, OBJECTS)
def test_node_that_has_the_load_balancer_address_sends_from_it(cluster: Cluster, row: Row) -> None:
    """A node within the source ranges may connect from the load balancer's address; another node may not."""
    address = row.to.ip
    node = cluster.lab["node1"]
    # Without nodad, an IPv6 address can be used only after a work queue of the kernel has run, also on a loopback.
    at_once = ["nodad"] if row.version == 6 else []
    node.run("ip", "address", "add", f"{address}/{address.max_prefixlen}", "dev", "lo", *at_once)
    try:
        assert address == address_of(f"public{35 if 'public35' in row.text else 33}", row.version)
        assert cluster.expected(row) == cluster.observe(row)
    finally:
        node.run("ip", "address", "delete", f"{address}/{address.max_prefixlen}", "dev", "lo")


@needs("is_iptables")
def test_service_without_node_ports_has_none(cluster: Cluster) -> None:
    """A Service without allocated node ports has no node port rules."""
    rules = [line for line in cluster.rules(cluster.lab["node1"]).splitlines() if "without-node-ports" in line]

    assert rules
    assert not [line for line in rules if "KUBE-NODEPORTS" in line]
