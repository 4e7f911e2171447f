"""Changes of the Node while its agent runs take effect immediately; a missing Node object is not a change."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab import IPAddress, tcp
from tests.lab.waiting import wait_until

from .cluster import Cluster
from .objects import VERSIONS, JsonObject, cluster_ips, node, port, service, slices

NODE_PORT = 30110
WEB = service("web", 76, port(80, node_port=NODE_PORT), type="NodePort")
FLAGS = ("--detect-local-mode=NodeCIDR", "--nodeport-addresses=primary")
ELSEWHERE = ["10.99.0.0/24", "fd00:10:99::/64"]
"""A pod CIDR without pods of the lab."""


@pytest.fixture(scope="module", autouse=True)
def objects(cluster: Cluster) -> Iterator[None]:
    """Run agents that depend on all fields of the Node; on exit, restore their earlier flags."""
    with cluster.keeping_flags():
        cluster.restart(*FLAGS)
        with cluster.having(WEB, *slices(WEB, "pod1-1")):
            yield


@pytest.fixture(autouse=True)
def first_node(cluster: Cluster) -> Iterator[None]:
    """Restore the Node after each test."""
    yield
    cluster.put(node("node1"))


def server(cluster: Cluster, to: IPAddress) -> str | None:
    """Return which server an external client reaches at the node port of an address; None for no answer."""
    [outcome] = cluster.lab["outside1"].probe(tcp(to, NODE_PORT))
    return outcome.server


def source(cluster: Cluster, version: int) -> str | None:
    """Return the source address that the endpoint sees of a client pod with the given address."""
    ip = cluster_ips(76)[VERSIONS.index(version)]
    [outcome] = cluster.lab["client-pod"].probe(tcp(ip, 80))
    return str(outcome.client.ip) if outcome.client else None


def changed(*, addresses: list[str] | None = None, pod_cidrs: list[str] | None = None) -> JsonObject:
    """Return the Node with other addresses, or other pod CIDRs."""
    made = node("node1")
    if addresses is not None:
        made["status"]["addresses"] = [{"type": "InternalIP", "address": text} for text in addresses]
    if pod_cidrs is not None:
        made["spec"] = {"podCIDR": pod_cidrs[0], "podCIDRs": pod_cidrs}
    return made


@pytest.mark.parametrize("version", VERSIONS)
def test_addresses_that_change(cluster: Cluster, version: int) -> None:
    """Node ports move to the new addresses of the Node."""
    host = cluster.lab["node1"]
    first, second = host.address(version), host.second_address(version)
    before = server(cluster, first), server(cluster, second)
    cluster.put(changed(addresses=[str(host.second_address(each)) for each in VERSIONS]))

    assert ("pod1-1", None) == before
    wait_until(
        lambda: (None, "pod1-1") == (server(cluster, first), server(cluster, second)), "node ports on the new address"
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_pod_ranges_that_change(cluster: Cluster, version: int) -> None:
    """A client that is no longer in the pod CIDR is masqueraded, without a restart of the agent."""
    host = cluster.lab["client-pod"]
    before = source(cluster, version)
    cluster.put(changed(pod_cidrs=ELSEWHERE))

    assert str(host.address(version)) == before
    wait_until(lambda: source(cluster, version) != before, "masquerading")


@pytest.mark.parametrize("version", VERSIONS)
def test_a_node_that_is_away(cluster: Cluster, version: int) -> None:
    """Without its Node object, or with a Node without addresses, the rules do not change."""
    address = cluster.lab["node1"].address(version)
    pod = str(cluster.lab["client-pod"].address(version))
    bare = changed(addresses=[])
    bare["spec"] = {}
    cluster.remove(node("node1"))
    away = server(cluster, address), source(cluster, version)
    cluster.put(bare)
    back = server(cluster, address), source(cluster, version)

    assert [("pod1-1", pod)] * 2 == [away, back]
