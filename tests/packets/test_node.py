"""What the rules do for the node itself: guard its loopback, let health checks in, serve a node port on 127.0.0.1."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab import Host, Outcome, Ports, Verdict, tcp

from .cluster import Cluster
from .modes import needs
from .objects import VERSIONS, ingress, port, public, service, slices
from .table import SILENCE_SECONDS

GUARDED_PORT = 9100
HEALTH_CHECK_PORT = 32000
CHECKED = service(
    "checked",
    70,
    port(80),
    type="LoadBalancer",
    externalTrafficPolicy="Local",
    healthCheckNodePort=HEALTH_CHECK_PORT,
    ingress=ingress(70),
)
SPOOFED = public(71)[0]
"""An address that the world routes to the node."""
SPOOFING = f"""
table ip spoofing {{
    chain postrouting {{ type filter hook postrouting priority raw; ip daddr {SPOOFED} ip daddr set 127.0.0.1; }}
    chain prerouting {{ type filter hook prerouting priority raw; iif eth0 ip saddr 127.0.0.1 ip saddr set {SPOOFED}; }}
}}
"""


@pytest.fixture(scope="module", autouse=True)
def objects(cluster: Cluster) -> Iterator[None]:
    """Have a Service with a health check on a node that answers there, and on one more port."""
    ports = Ports(tcp=(GUARDED_PORT, HEALTH_CHECK_PORT))
    cluster.lab["node1"].serve(tcp=ports.tcp)
    with cluster.having(CHECKED, *slices(CHECKED, "pod1-1")):
        yield
    cluster.lab["node1"].stop_serving(ports)


@pytest.fixture
def spoofer(cluster: Cluster) -> Iterator[Host]:
    """Give a host on the node's segment whose packets to one public address leave as packets to 127.0.0.1."""
    host = cluster.lab["outside1"]
    host.run("nft", "-f", "-", stdin=SPOOFING)
    yield host
    host.run("nft", "delete", "table", "ip", "spoofing")


@needs("is_iptables")
def test_loopback_of_the_node_is_guarded_against_its_neighbours(cluster: Cluster, spoofer: Host) -> None:
    """route_localnet would let neighbours in to what listens on 127.0.0.1; the guard drops them, and only it does."""
    iptables = cluster.mode.iptables[0]
    into_silence = tcp(SPOOFED, GUARDED_PORT, timeout_seconds=SILENCE_SECONDS)

    [guarded] = spoofer.probe(into_silence)
    cluster.stop()
    cluster.run(cluster.lab["node1"], iptables, "-D", "INPUT", "-j", "KUBE-FIREWALL")
    [unguarded] = spoofer.probe(tcp(SPOOFED, GUARDED_PORT))
    cluster.start()
    [guarded_again] = spoofer.probe(into_silence)

    assert "node1" == unguarded.server
    assert [Outcome(Verdict.TIMEOUT)] * 2 == [guarded, guarded_again]


@needs("lets_health_checks_in")
@pytest.mark.parametrize("version", VERSIONS)
def test_health_check_node_port_is_let_in(cluster: Cluster, version: int) -> None:
    """A node whose firewall drops what it does not know answers on health check ports, and on no other."""
    node = cluster.lab["node1"]
    iptables = cluster.mode.iptables[VERSIONS.index(version)]
    outside = cluster.lab["outside1"]
    outside.probe(tcp(node.address(version), GUARDED_PORT))  # neighbour discovery is dropped from now on, too
    cluster.run(node, iptables, "-P", "INPUT", "DROP")
    try:
        checked, other = outside.probe(
            tcp(node.address(version), HEALTH_CHECK_PORT),
            tcp(node.address(version), GUARDED_PORT, timeout_seconds=SILENCE_SECONDS),
        )
    finally:
        cluster.run(node, iptables, "-P", "INPUT", "ACCEPT")

    assert "node1" == checked.server
    assert Outcome(Verdict.TIMEOUT) == other


@needs("lets_health_checks_in")
def test_health_check_node_port_goes_with_its_service(cluster: Cluster) -> None:
    """Without the Service there is no rule for its health check."""
    assert f"--dport {HEALTH_CHECK_PORT}" in cluster.rules(cluster.lab["node1"])

    cluster.remove(CHECKED)

    assert f"--dport {HEALTH_CHECK_PORT}" not in cluster.rules(cluster.lab["node1"])
    cluster.put(CHECKED)
