"""Attacks with addresses: 127/8 from a neighbour (CVE-2020-8558), and Services that claim addresses (CVE-2020-8554).

Source ranges, also through node ports, from nodes, pods and the load balancer's own address, are rows of
`test_external_addresses.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab import Host, Outcome, Ports, Verdict, tcp

from .cluster import CLUSTER_CIDR_FLAG, Cluster
from .objects import ADDRESSES, JsonObject, cluster_ips, port, service, slices
from .spoofing import SPOOFED
from .table import SILENCE_SECONDS, Row, rows

GUARDED_PORT = 9101
"""A port on which the node itself serves, as programs do that trust clients on loopback."""
NODE_PORT = 30170
OWNER = service("owner", 170, port(80, node_port=NODE_PORT), type="NodePort")
THIEF = service("thief", 171, port(80), externalIPs=[*cluster_ips(170), *ADDRESSES["outside2"]])
OBJECTS: list[JsonObject] = [
    *(OWNER, *slices(OWNER, "pod1-1")),
    *(THIEF, *slices(THIEF, "pod2-1")),
]
STOLEN_CLUSTER_IP = """
client-pod         owner:80/tcp           pod1-1              itself
pod2-2             owner:80/tcp           pod1-1              itself
node1              owner:80/tcp           pod1-1              node1
node2              owner:80/tcp           pod1-1              node2
client-pod         thief:80/tcp           pod2-1              itself
"""
STOLEN_FOREIGN_IP = """
client-pod         outside2:80/tcp        pod2-1              node1
node2              outside2:80/tcp        pod2-1              node2
"""


@pytest.fixture(scope="module", autouse=True)
def objects(cluster: Cluster) -> Iterator[None]:
    """Add the Services, and serve a port on the node."""
    cluster.lab["node1"].serve(tcp=(GUARDED_PORT,))
    with cluster.having(*OBJECTS):
        yield
    cluster.lab["node1"].stop_serving(Ports(tcp=(GUARDED_PORT,)))


def test_cve_2020_8558(cluster: Cluster, spoofer: Host) -> None:
    """In every mode a neighbour gets no answer from a program of the node that it addresses by 127.0.0.1.

    The iptables mode sets route_localnet and has a rule, which `test_node.py` removes. As with kube-proxy, the rule lets
    node ports through, which the neighbour may use anyway by another address of the node. All other modes leave the setting
    alone, so that the kernel drops such packets; the test sets it, to prove that they arrive.
    """
    node = cluster.lab["node1"]
    probes = [tcp(SPOOFED, number, timeout_seconds=SILENCE_SECONDS) for number in (GUARDED_PORT, NODE_PORT)]
    guarded, node_port = spoofer.probe(*probes)
    if not cluster.mode.is_iptables:
        cluster.run(node, "sysctl", "-qw", "net.ipv4.conf.eth0.route_localnet=1")
        [unguarded] = spoofer.probe(tcp(SPOOFED, GUARDED_PORT))
        cluster.run(node, "sysctl", "-qw", "net.ipv4.conf.eth0.route_localnet=0")

        assert "node1" == unguarded.server
    assert Outcome(Verdict.TIMEOUT) == guarded
    assert ("pod1-1" if cluster.mode.is_iptables else None) == node_port.server


def test_node_ports_for_loopback_only(cluster: Cluster, spoofer: Host) -> None:
    """If only loopback addresses have node ports, a neighbour gets no answer from them, in contrast to kube-proxy."""
    with cluster.keeping_flags():
        cluster.restart(CLUSTER_CIDR_FLAG, "--nodeport-addresses=127.0.0.0/8")
        [from_neighbour] = spoofer.probe(tcp(SPOOFED, NODE_PORT, timeout_seconds=SILENCE_SECONDS))
        [from_node] = cluster.lab["node1"].probe(tcp("127.0.0.1", NODE_PORT))

    assert (Outcome(Verdict.TIMEOUT), "pod1-1") == (from_neighbour, from_node.server)


@rows(STOLEN_CLUSTER_IP, OBJECTS)
def test_cve_2020_8554_with_a_cluster_ip(cluster: Cluster, row: Row) -> None:
    """A Service whose external IP is the cluster IP of another Service gets no connection to it."""
    assert cluster.expected(row) == cluster.observed(row)


@rows(STOLEN_FOREIGN_IP, OBJECTS)
def test_cve_2020_8554_with_an_address_outside_the_cluster(cluster: Cluster, row: Row) -> None:
    """As with kube-proxy, a Service gets the connections that pods and nodes open to an external IP outside the cluster.

    Only an admission policy that restricts `externalIPs` prevents this.
    """
    assert cluster.expected(row) == cluster.observed(row)
