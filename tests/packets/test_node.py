"""Rules for the node itself: protecting its loopback, and accepting health checks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab import Host, Outcome, Ports, Verdict, tcp

from .cluster import Cluster
from .modes import needs
from .objects import VERSIONS, ingress, port, service, slices
from .spoofing import SPOOFED
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


@pytest.fixture(scope="module", autouse=True)
def objects(cluster: Cluster) -> Iterator[None]:
    """Add a Service with a health check node port, and serve that port and another one on the node."""
    ports = Ports(tcp=(GUARDED_PORT, HEALTH_CHECK_PORT))
    cluster.lab["node1"].serve(tcp=ports.tcp)
    with cluster.having(CHECKED, *slices(CHECKED, "pod1-1")):
        yield
    cluster.lab["node1"].stop_serving(ports)


@needs("is_iptables")
def test_loopback_is_protected_against_neighbours(cluster: Cluster, spoofer: Host) -> None:
    """A rule, and nothing else, drops packets of neighbours to 127.0.0.1, which route_localnet would accept."""
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
    """A node whose firewall drops unknown packets answers only on health check node ports."""
    node = cluster.lab["node1"]
    iptables = cluster.mode.iptables[VERSIONS.index(version)]
    outside = cluster.lab["outside1"]
    outside.probe(tcp(node.address(version), GUARDED_PORT))  # from now on, neighbour discovery is dropped as well
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
    """The rule for a health check node port is removed with its Service."""
    assert f"--dport {HEALTH_CHECK_PORT}" in cluster.rules(cluster.lab["node1"])

    cluster.remove(CHECKED)

    assert f"--dport {HEALTH_CHECK_PORT}" not in cluster.rules(cluster.lab["node1"])
    cluster.put(CHECKED)
