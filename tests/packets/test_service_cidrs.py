"""ServiceCIDRs: packets to addresses in these ranges that no Service has are dropped.

In this suite a host that node1 has a route to owns the unallocated addresses, so packets that are not dropped get an
answer. As in kube-proxy, only the nftables mode uses the ranges; in other modes the packets follow the node's routes.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_network

import pytest

from tests.lab import SERVICE_CIDRS, Ports, Verdict, probe_all, tcp, udp

from .cluster import ANSWER_SECONDS, Cluster
from .modes import needs
from .objects import PORT, VERSIONS, JsonObject, cluster_ips, port, service, slices
from .table import SILENCE_SECONDS

SOURCES = ("node1", "pod1-1")
"""Packets of the node itself pass the output hook, all other packets the forward hook."""
SILENCE = Verdict.TIMEOUT.value
OWNER = "database"
"""The host that owns the unallocated addresses."""
UNALLOCATED = cluster_ips(251)
LATER_CIDRS = ("10.97.0.0/16", "fd00:10:97::/112")
UNALLOCATED_LATER = [str(ip_network(cidr)[251]) for cidr in LATER_CIDRS]
BESIDE = [str(ip_network(cidr).broadcast_address + 251) for cidr in LATER_CIDRS]
"""Addresses outside all ranges."""
SERVED = service("served", 252, port(80))
EMPTY = service("empty", 253, port(80))


def service_cidr(name: str, *cidrs: str) -> JsonObject:
    """Return a ServiceCIDR."""
    head = {"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": name}}
    return head | {"spec": {"cidrs": list(cidrs)}}


DEFAULT = service_cidr("kubernetes", *map(str, SERVICE_CIDRS))
LATER = service_cidr("later", *LATER_CIDRS)

versions = pytest.mark.parametrize("version", VERSIONS)


@pytest.fixture(scope="module", autouse=True)
def owner(cluster: Cluster) -> Iterator[None]:
    """Assign the addresses to a host that answers on them, and add a route to it on node1."""
    host, node = cluster.lab[OWNER], cluster.lab["node1"]
    addresses = [*UNALLOCATED, *UNALLOCATED_LATER, *BESIDE]
    routes = [(ip, str(host.address(6 if ":" in ip else 4))) for ip in addresses]
    host.serve(tcp=[PORT], udp=[PORT])
    for ip, via in routes:
        host.run("ip", "address", "add", ip, "dev", "lo")
        node.run("ip", "route", "add", ip, "via", via)
    yield
    for ip, _ in routes:
        node.run("ip", "route", "delete", ip)
        host.run("ip", "address", "delete", ip, "dev", "lo")
    host.stop_serving(Ports(tcp=(PORT,), udp=(PORT,)))


@pytest.fixture
def dropped(cluster: Cluster) -> str:
    """Return the expected result of packets to an unallocated address in a known range."""
    return SILENCE if cluster.mode.drops_unallocated else OWNER


def fates(cluster: Cluster, version: int, *expected: tuple[list[str], str]) -> list[str]:
    """Return the results of packets from every source to addresses; uses a short time-out where none answers."""
    return [_fate(cluster, ips[VERSIONS.index(version)], fate) for ips, fate in expected]


def _fate(cluster: Cluster, ip: str, expected: str) -> str:
    timeout = SILENCE_SECONDS if expected == SILENCE else ANSWER_SECONDS
    probes = [probe(ip, PORT, timeout_seconds=timeout) for probe in (tcp, udp)]
    outcomes = probe_all([(cluster.lab[source], probe) for source in SOURCES for probe in probes])
    return " or ".join(sorted({outcome.server or outcome.verdict.value for outcome in outcomes}))


@versions
def test_without_ranges(cluster: Cluster, version: int) -> None:
    """Without a ServiceCIDR nothing is dropped."""
    assert [OWNER] == fates(cluster, version, (UNALLOCATED, OWNER))


@versions
def test_ranges_that_come_and_go(cluster: Cluster, version: int, dropped: str) -> None:
    """A range takes effect when its ServiceCIDR is added, and ends with it; it affects only its own addresses."""
    one = [(UNALLOCATED, dropped), (UNALLOCATED_LATER, OWNER), (BESIDE, OWNER)]
    both = [(UNALLOCATED, dropped), (UNALLOCATED_LATER, dropped), (BESIDE, OWNER)]
    with cluster.having(DEFAULT):
        assert [fate for _, fate in one] == fates(cluster, version, *one)
        with cluster.having(LATER):
            assert [fate for _, fate in both] == fates(cluster, version, *both)
        assert [fate for _, fate in one] == fates(cluster, version, *one)
    assert [OWNER] == fates(cluster, version, (UNALLOCATED, OWNER))


@versions
def test_cluster_ips_in_a_range(cluster: Cluster, version: int) -> None:
    """Cluster IPs are served or refused as without a range, also an address allocated later."""
    first, second = (item["spec"]["clusterIPs"][VERSIONS.index(version)] for item in (SERVED, EMPTY))
    probes = [tcp(first, 80), tcp(second, 80), tcp(first, 81, timeout_seconds=SILENCE_SECONDS)]
    pod = cluster.lab["pod1-1"]
    with cluster.having(DEFAULT):
        [before] = pod.probe(tcp(first, 80, timeout_seconds=SILENCE_SECONDS))
        with cluster.having(SERVED, *slices(SERVED, "pod1-2"), EMPTY):
            served, empty, unserved = pod.probe(*probes)

    assert not before.server
    assert ("pod1-2", Verdict.REFUSED) == (served.server, empty.verdict)
    assert (unserved.verdict is Verdict.REFUSED) == (cluster.mode.unserved == "refused")


@versions
def test_connections_from_before_a_range(cluster: Cluster, version: int, dropped: str) -> None:
    """A connection that was established before the range existed continues."""
    ip = UNALLOCATED[VERSIONS.index(version)]
    with cluster.lab["pod1-1"].connect(tcp(ip, PORT)) as connection, cluster.having(DEFAULT):
        assert [dropped] == fates(cluster, version, (UNALLOCATED, dropped))
        assert OWNER == connection.ask().server


@needs("drops_unallocated")
@versions
def test_ranges_after_a_restart(cluster: Cluster, version: int) -> None:
    """The first sync after a restart includes Services and ranges."""
    with cluster.having(DEFAULT):
        cluster.restart(*cluster.flags)

        assert [SILENCE] == fates(cluster, version, (UNALLOCATED, SILENCE))
