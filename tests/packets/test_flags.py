"""Flags that change what a packet meets: which traffic is a pod's, what is masqueraded, where node ports answer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab import SECOND_SEGMENT, SEGMENT

from .cluster import CLUSTER_CIDR_FLAG, Cluster, wait_until
from .modes import needs
from .objects import JsonObject, port, service, slices
from .table import Row, rows

WEB = service("web", 60, port(80, name="t"), port(80, "UDP", name="u"))
LOCAL_UDP = service("local-udp", 64, port(80, "UDP", node_port=30103), type="NodePort", externalTrafficPolicy="Local")
CLUSTER_UDP = service("cluster-udp", 66, port(80, "UDP", node_port=30105), type="NodePort")
NODE_PORT = service("node-port", 61, port(80, node_port=30100), type="NodePort")
LOCAL = service("local", 62, port(80, node_port=30101), type="NodePort", externalTrafficPolicy="Local")
HAIRPIN = service("hairpin", 63, port(80, node_port=30102), type="NodePort")
OBJECTS: list[JsonObject] = [
    *(WEB, *slices(WEB, "pod1-1", "pod2-1")),
    *(NODE_PORT, *slices(NODE_PORT, "pod1-1", "pod2-1")),
    *(LOCAL, *slices(LOCAL, "pod1-1", "pod1-2", "pod2-1")),
    *(HAIRPIN, *slices(HAIRPIN, "pod1-1")),
    *(LOCAL_UDP, *slices(LOCAL_UDP, "pod1-1", "pod1-2", "pod2-1")),
    *(CLUSTER_UDP, *slices(CLUSTER_UDP, "pod1-1", "pod2-1")),
]

PODS_ARE_KNOWN = """
client-pod   web:80/tcp             pod1-1 pod2-1          itself
client-pod   web:80/udp             pod1-1 pod2-1          itself
node1        web:80/tcp             pod1-1 pod2-1          node1
outside1     web:80/udp             pod1-1 pod2-1          node1
client-pod   node1:30100/tcp        pod1-1 pod2-1          node1
client-pod   node1:30101/tcp        pod1-1 pod1-2 pod2-1   itself
outside1     node1:30101/tcp        pod1-1 pod1-2          itself
pod1-1       hairpin:80/tcp         pod1-1                 node1
"""
NOBODY_IS_KNOWN = """
client-pod   web:80/tcp             pod1-1 pod2-1          itself
node1        web:80/tcp             pod1-1 pod2-1          itself
outside1     hairpin:80/tcp         pod1-1                 itself
outside1     node1:30100/tcp        pod1-1 pod2-1          node1
client-pod   node1:30101/tcp        pod1-1 pod1-2          itself
node1        node1:30101/tcp        pod1-1 pod1-2 pod2-1   node1
pod1-1       hairpin:80/tcp         pod1-1                 node1
"""
ALL_IS_MASQUERADED = """
client-pod   web:80/tcp             pod1-1 pod2-1          node1
pod2-2       web:80/udp             pod1-1 pod2-1          node2
node1        web:80/tcp             pod1-1 pod2-1          node1
outside1     web:80/tcp             pod1-1 pod2-1          node1
client-pod   node1:30101/tcp        pod1-1 pod1-2 pod2-1   itself
outside1     node1:30101/tcp        pod1-1 pod1-2          itself
"""
ON_ONE_SEGMENT = """
outside1     node1:30100/tcp        pod1-1 pod2-1          node1
node1        node1:30100/tcp        pod1-1 pod2-1          node1
client-pod   node1:30100/tcp        pod1-1 pod2-1          node1
outside1     node1':30100/tcp       reset
node1        127.0.0.1:30100/tcp    reset
outside1     web:80/tcp             pod1-1 pod2-1          node1
"""
ON_PRIMARY = """
outside1     node1:30100/tcp        pod1-1 pod2-1          node1
outside1     node1':30100/tcp       reset
node1        127.0.0.1:30100/tcp    reset
"""
ON_PRIMARY_AND_ONE_SEGMENT = """
outside1     node1:30100/tcp        pod1-1 pod2-1          node1
outside1     node1':30100/tcp       pod1-1 pod2-1          node1
"""
ON_EVERY_ADDRESS = """
outside1     node1:30100/tcp        pod1-1 pod2-1          node1
outside1     node1':30100/tcp       pod1-1 pod2-1          node1
"""
ON_LOCALHOST_IPV4 = """
node1        127.0.0.1:30100/tcp    pod1-1 pod2-1          node1
node1        127.0.0.1:30105/udp    pod1-1 pod2-1          node1
node1        node1:30100/tcp        pod1-1 pod2-1          node1
"""
ON_LOCALHOST_IPV6 = """
node1        ::1:30100/tcp          pod1-1 pod2-1          node1
node1        ::1:30101/tcp          pod1-1 pod1-2          node1
node1        ::1:30105/udp          pod1-1 pod2-1          node1
node1        ::1:30103/udp          pod1-1 pod1-2          node1
node1        node1:30100/tcp        pod1-1 pod2-1          node1
"""
NOT_ON_LOOPBACK = """
node1        127.0.0.1:30100/tcp    reset
node1        node1:30100/tcp        pod1-1 pod2-1          node1
outside1     node1':30100/tcp       pod1-1 pod2-1          node1
"""
ON_LOOPBACK_ONLY = """
node1        127.0.0.1:30100/tcp    pod1-1 pod2-1          node1
outside1     node1:30100/tcp        reset
"""
ON_A_LATER_ADDRESS = """
outside1     172.18.0.77:30102/tcp      pod1-1       node1
outside1     fd00:172:18::77:30102/tcp  pod1-1       node1
"""
SEGMENT_FLAG = f"--nodeport-addresses={','.join(map(str, SEGMENT))}"


def agents_with(*flags: str) -> pytest.MarkDecorator:
    """Run the tests under it with agents that have these flags."""
    return pytest.mark.parametrize("agents", [flags], indirect=True, ids=[" ".join(flags) or "no flags"])


@pytest.fixture(scope="module", autouse=True)
def objects(cluster: Cluster) -> Iterator[None]:
    """Have the objects of this suite, and in the end the agents as they were."""
    with cluster.having(*OBJECTS), cluster.keeping_flags():
        yield


@pytest.fixture(scope="module")
def agents(cluster: Cluster, request: pytest.FixtureRequest) -> Cluster:
    """Give the cluster after its agents were started again with these flags."""
    cluster.restart(*request.param)
    return cluster


@agents_with("--detect-local-mode=NodeCIDR")
@rows(PODS_ARE_KNOWN, OBJECTS)
def test_pods_are_told_by_the_pod_range_of_their_node(agents: Cluster, row: Row) -> None:
    """With the node's pod range from its Node object, pods keep their address and use the short-cut."""
    assert agents.expected(row) == agents.met(row)


@agents_with("--detect-local-mode=BridgeInterface", "--pod-bridge-interface=cni0")
@rows(PODS_ARE_KNOWN, OBJECTS)
def test_pods_are_told_by_their_bridge(agents: Cluster, row: Row) -> None:
    """With the name of the pod bridge, pods keep their address and use the short-cut."""
    assert agents.expected(row) == agents.met(row)


@agents_with("--detect-local-mode=InterfaceNamePrefix", "--pod-interface-name-prefix=cni")
@rows(PODS_ARE_KNOWN, OBJECTS)
def test_pods_are_told_by_the_names_of_their_interfaces(agents: Cluster, row: Row) -> None:
    """With a prefix of interface names, pods keep their address and use the short-cut."""
    assert agents.expected(row) == agents.met(row)


@agents_with("--detect-local-mode=ClusterCIDR")
@rows(NOBODY_IS_KNOWN, OBJECTS)
def test_nobody_is_known_to_be_a_pod(agents: Cluster, row: Row) -> None:
    """Without any pod range, cluster IPs masquerade nobody, and pods have no short-cut."""
    assert agents.expected(row) == agents.met(row)


@agents_with("--masquerade-all", CLUSTER_CIDR_FLAG)
@rows(ALL_IS_MASQUERADED, OBJECTS)
def test_everything_to_cluster_ips_is_masqueraded(agents: Cluster, row: Row) -> None:
    """With --masquerade-all pods are masqueraded too, but not where a policy is Local."""
    assert agents.expected(row) == agents.met(row)


@agents_with(SEGMENT_FLAG, CLUSTER_CIDR_FLAG)
@rows(ON_ONE_SEGMENT, OBJECTS)
def test_node_ports_answer_on_the_asked_ranges_only(agents: Cluster, row: Row) -> None:
    """With --nodeport-addresses the node's addresses inside the ranges have node ports, and no others."""
    assert agents.expected(row) == agents.met(row)


@agents_with("--nodeport-addresses=primary", CLUSTER_CIDR_FLAG)
@rows(ON_PRIMARY, OBJECTS)
def test_node_ports_answer_on_the_primary_address_only(agents: Cluster, row: Row) -> None:
    """The word primary means the addresses of the Node object."""
    assert agents.expected(row) == agents.met(row)


@agents_with(f"--nodeport-addresses=primary,{','.join(map(str, SECOND_SEGMENT))}", CLUSTER_CIDR_FLAG)
@rows(ON_PRIMARY_AND_ONE_SEGMENT, OBJECTS)
def test_node_ports_answer_on_keywords_and_ranges_together(agents: Cluster, row: Row) -> None:
    """A keyword beside ranges adds its addresses to theirs."""
    assert agents.expected(row) == agents.met(row)


@agents_with("--nodeport-addresses=localhost,all", CLUSTER_CIDR_FLAG)
@rows(ON_EVERY_ADDRESS, OBJECTS)
def test_node_ports_answer_on_every_address(agents: Cluster, row: Row) -> None:
    """The keyword all means every address of the node, whatever stands beside it and in every mode."""
    assert agents.expected(row) == agents.met(row)


@agents_with("--nodeport-addresses=primary,localhost", CLUSTER_CIDR_FLAG)
@rows(ON_LOCALHOST_IPV4, OBJECTS, versions=[4])
def test_node_ports_answer_on_ipv4_localhost_by_name(agents: Cluster, row: Row) -> None:
    """The keyword localhost opens TCP and UDP node ports on 127.0.0.1 in every mode."""
    assert agents.expected(row) == agents.met(row)


@agents_with("--nodeport-addresses=primary,localhost", CLUSTER_CIDR_FLAG)
@rows(ON_LOCALHOST_IPV6, OBJECTS, versions=[6])
def test_node_ports_answer_on_ipv6_localhost_by_name(agents: Cluster, row: Row) -> None:
    """The keyword localhost opens TCP and UDP node ports on ::1 in every mode; an external policy Local means pods of the node."""
    assert agents.expected(row) == agents.met(row)


@needs("localhost_node_ports")
@agents_with("--iptables-localhost-nodeports=false", CLUSTER_CIDR_FLAG)
@rows(NOT_ON_LOOPBACK, OBJECTS)
def test_node_ports_do_not_answer_on_loopback(agents: Cluster, row: Row) -> None:
    """With --iptables-localhost-nodeports=false every address but the loopback's has node ports."""
    assert agents.expected(row) == agents.met(row)


@needs("localhost_node_ports")
@agents_with("--nodeport-addresses=127.0.0.0/8", CLUSTER_CIDR_FLAG)
@rows(ON_LOOPBACK_ONLY, OBJECTS, versions=[4])
def test_node_ports_answer_on_loopback_only(agents: Cluster, row: Row) -> None:
    """The loopback is an address like others, if it is asked for."""
    assert agents.expected(row) == agents.met(row)


@agents_with(SEGMENT_FLAG, CLUSTER_CIDR_FLAG)
@rows(ON_A_LATER_ADDRESS, OBJECTS)
def test_address_that_comes_later_has_node_ports_too(agents: Cluster, row: Row) -> None:
    """An address inside the ranges that a node is given while its agent runs has node ports, until it is gone."""
    node, address = agents.lab["node1"], row.to.ip
    nodad = ["nodad"] if address.version == 6 else []
    node.run("ip", "address", "add", str(address), "dev", "eth0", *nodad)
    try:
        wait_until(lambda: agents.expected(row) == agents.meet(row), "answers on the new address")
    finally:
        node.run("ip", "address", "delete", f"{address}/{address.max_prefixlen}", "dev", "eth0")
