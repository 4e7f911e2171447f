"""Flags that affect packets: detection of local traffic, masquerading, node port addresses."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab import SECOND_SEGMENT, SEGMENT
from tests.lab.waiting import wait_until

from .cluster import CLUSTER_CIDR_FLAG, Cluster
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
NO_POD_IS_KNOWN = """
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
    """Run the decorated test with agents that have these flags."""
    return pytest.mark.parametrize("agents", [flags], indirect=True, ids=[" ".join(flags) or "no flags"])


@pytest.fixture(scope="module", autouse=True)
def objects(cluster: Cluster) -> Iterator[None]:
    """Add the objects of this suite; on exit, restart the agents with their earlier flags."""
    with cluster.having(*OBJECTS), cluster.keeping_flags():
        yield


@pytest.fixture(scope="module")
def agents(cluster: Cluster, request: pytest.FixtureRequest) -> Cluster:
    """Provide the cluster with agents that were restarted with these flags."""
    cluster.restart(*request.param)
    return cluster


@agents_with("--detect-local-mode=NodeCIDR")
@rows(PODS_ARE_KNOWN, OBJECTS)
def test_pods_are_detected_by_the_pod_cidr_of_their_node(agents: Cluster, row: Row) -> None:
    """With the pod CIDR of the Node object, pods keep their address, and bypass the policy Local."""
    assert agents.expected(row) == agents.observed(row)


@agents_with("--detect-local-mode=BridgeInterface", "--pod-bridge-interface=cni0")
@rows(PODS_ARE_KNOWN, OBJECTS)
def test_pods_are_detected_by_their_bridge(agents: Cluster, row: Row) -> None:
    """With the name of the pod bridge, pods keep their address, and bypass the policy Local."""
    assert agents.expected(row) == agents.observed(row)


@agents_with("--detect-local-mode=InterfaceNamePrefix", "--pod-interface-name-prefix=cni")
@rows(PODS_ARE_KNOWN, OBJECTS)
def test_pods_are_detected_by_the_names_of_their_interfaces(agents: Cluster, row: Row) -> None:
    """With a prefix of interface names, pods keep their address, and bypass the policy Local."""
    assert agents.expected(row) == agents.observed(row)


@agents_with("--detect-local-mode=ClusterCIDR")
@rows(NO_POD_IS_KNOWN, OBJECTS)
def test_pods_cannot_be_detected(agents: Cluster, row: Row) -> None:
    """Without a pod CIDR, packets to cluster IPs are not masqueraded, and the policy Local applies to pods."""
    assert agents.expected(row) == agents.observed(row)


@agents_with("--masquerade-all", CLUSTER_CIDR_FLAG)
@rows(ALL_IS_MASQUERADED, OBJECTS)
def test_everything_to_cluster_ips_is_masqueraded(agents: Cluster, row: Row) -> None:
    """With --masquerade-all pods are masqueraded as well, except under the policy Local."""
    assert agents.expected(row) == agents.observed(row)


@agents_with(SEGMENT_FLAG, CLUSTER_CIDR_FLAG)
@rows(ON_ONE_SEGMENT, OBJECTS)
def test_node_ports_answer_on_the_configured_ranges_only(agents: Cluster, row: Row) -> None:
    """With --nodeport-addresses, only addresses of the node within the ranges have node ports."""
    assert agents.expected(row) == agents.observed(row)


@agents_with("--nodeport-addresses=primary", CLUSTER_CIDR_FLAG)
@rows(ON_PRIMARY, OBJECTS)
def test_node_ports_answer_on_the_primary_address_only(agents: Cluster, row: Row) -> None:
    """The keyword primary selects the addresses of the Node object."""
    assert agents.expected(row) == agents.observed(row)


@agents_with(f"--nodeport-addresses=primary,{','.join(map(str, SECOND_SEGMENT))}", CLUSTER_CIDR_FLAG)
@rows(ON_PRIMARY_AND_ONE_SEGMENT, OBJECTS)
def test_node_ports_answer_on_keywords_and_ranges_together(agents: Cluster, row: Row) -> None:
    """A keyword can be combined with ranges."""
    assert agents.expected(row) == agents.observed(row)


@agents_with("--nodeport-addresses=localhost,all", CLUSTER_CIDR_FLAG)
@rows(ON_EVERY_ADDRESS, OBJECTS)
def test_node_ports_answer_on_every_address(agents: Cluster, row: Row) -> None:
    """The keyword all selects every address of the node in every mode, whatever else is listed."""
    assert agents.expected(row) == agents.observed(row)


@agents_with("--nodeport-addresses=primary,localhost", CLUSTER_CIDR_FLAG)
@rows(ON_LOCALHOST_IPV4, OBJECTS, versions=[4])
def test_node_ports_answer_on_ipv4_localhost_by_name(agents: Cluster, row: Row) -> None:
    """With the keyword localhost, TCP and UDP node ports are served on 127.0.0.1 in every mode."""
    assert agents.expected(row) == agents.observed(row)


@agents_with("--nodeport-addresses=primary,localhost", CLUSTER_CIDR_FLAG)
@rows(ON_LOCALHOST_IPV6, OBJECTS, versions=[6])
def test_node_ports_answer_on_ipv6_localhost_by_name(agents: Cluster, row: Row) -> None:
    """With the keyword localhost, TCP and UDP node ports are served on ::1 in every mode, also under the policy Local."""
    assert agents.expected(row) == agents.observed(row)


@needs("localhost_node_ports")
@agents_with("--iptables-localhost-nodeports=false", CLUSTER_CIDR_FLAG)
@rows(NOT_ON_LOOPBACK, OBJECTS)
def test_node_ports_do_not_answer_on_loopback(agents: Cluster, row: Row) -> None:
    """With --iptables-localhost-nodeports=false every address except the loopback addresses has node ports."""
    assert agents.expected(row) == agents.observed(row)


@needs("localhost_node_ports")
@agents_with("--nodeport-addresses=127.0.0.0/8", CLUSTER_CIDR_FLAG)
@rows(ON_LOOPBACK_ONLY, OBJECTS, versions=[4])
def test_node_ports_answer_on_loopback_only(agents: Cluster, row: Row) -> None:
    """Node ports are served on loopback addresses alone, if the ranges contain only these."""
    assert agents.expected(row) == agents.observed(row)


@agents_with(SEGMENT_FLAG, CLUSTER_CIDR_FLAG)
@rows(ON_A_LATER_ADDRESS, OBJECTS)
def test_address_added_later_has_node_ports(agents: Cluster, row: Row) -> None:
    """An address within the ranges that is added while the agent runs has node ports until it is removed."""
    node, address = agents.lab["node1"], row.to.ip
    nodad = ["nodad"] if address.version == 6 else []
    node.run("ip", "address", "add", str(address), "dev", "eth0", *nodad)
    try:
        wait_until(lambda: agents.expected(row) == agents.observe(row), "answers on the new address")
    finally:
        node.run("ip", "address", "delete", f"{address}/{address.max_prefixlen}", "dev", "eth0")
