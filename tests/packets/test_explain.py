"""``pyproxy explain`` on a node, with and without an agent: what it reads from the kernel decides on real packets."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest

from pyproxy.cli.explain_report import ExplanationDocument
from tests.lab import Probe, Protocol, SocketAddress, probe_all

from .cluster import PYPROXY, Cluster
from .objects import ADDRESSES, JsonObject, cluster_ips, port, service, slices
from .table import address_of

WEB = service("explained", 180, port(80, node_port=30180), type="NodePort")
LOCAL = service("explained-local", 181, port(80, node_port=30181), type="NodePort", externalTrafficPolicy="Local")
PINNED = service("explained-pinned", 182, port(80), sessionAffinity="ClientIP")
EMPTY = service("explained-empty", 183, port(80))
OBJECTS: list[JsonObject] = [
    *(WEB, *slices(WEB, "pod1-1", "pod2-1")),
    *(LOCAL, *slices(LOCAL, "pod2-1")),
    *(PINNED, *slices(PINNED, "pod1-1", "pod2-1")),
    EMPTY,
]
POD = ADDRESSES["client-pod"][0]
OUTSIDE = ADDRESSES["outside1"][0]
NODE = ADDRESSES["node1"][0]
ENDPOINTS = {f"{ADDRESSES[name][0]}:8080" for name in ("pod1-1", "pod2-1")}


@pytest.fixture(scope="module", autouse=True)
def objects(cluster: Cluster) -> Iterator[None]:
    """Add the objects."""
    with cluster.having(*OBJECTS):
        yield


def explained(cluster: Cluster, *words: str, asks_agent: bool = True) -> tuple[int, ExplanationDocument]:
    """Return exit code and document of the command on node1."""
    host = cluster.lab["node1"]
    path = cluster.control_socket(host) if asks_agent else ""
    command = (PYPROXY, "explain", f"--control-socket={path}", *words, "-o", "json")
    text, _, status = cluster.run(host, "sh", "-c", '"$@"; echo "status $?"', "sh", *command).rpartition("status ")
    return int(status), msgspec.json.decode(text, type=ExplanationDocument)


@pytest.mark.parametrize(
    ("words", "code", "fix"),
    [
        (f"{POD} default/explained", 0, ""),
        (f"{OUTSIDE} 30180", 0, ""),
        (f"{OUTSIDE} {NODE}:30181", 5, "send the client to node2"),
        (f"{POD} default/explained-empty", 4, "spec.selector"),
        (f"{POD} default/missing", 6, "kubectl get services"),
        ("node1 default/explained-pinned", 0, ""),
    ],
)
def test_live(cluster: Cluster, words: str, code: int, fix: str) -> None:
    """The objects come from the agent, the rules from the kernel, and both lead to the same."""
    status, found = explained(cluster, *words.split())

    assert code == status
    assert fix in found.fix
    if "missing" not in words:
        assert (True, "", "node1") == (found.intended, found.difference, found.node)
        assert (cluster.mode.name.partition("-")[0], "default/explained") == (found.mode, found.service[:17])
        assert found.read_at
    if code == 0:
        assert {path.endpoint for path in found.paths} == ENDPOINTS
        assert {"on node1", "on node2"} == {path.place for path in found.paths}


def test_without_an_agent(cluster: Cluster) -> None:
    """The rules in the kernel are explained alone; whether they are intended is not known."""
    status, found = explained(cluster, OUTSIDE, f"{cluster_ips(180)[0]}:80", asks_agent=False)

    assert (0, None) == (status, found.intended)
    assert cluster.mode.name.partition("-")[0] == found.mode
    assert {path.endpoint for path in found.paths} == ENDPOINTS


def test_rule_of_another_program(cluster: Cluster) -> None:
    """A rule of another program that drops the packet is the verdict, and the first difference."""
    host = cluster.lab["node1"]
    hook = "{ type filter hook prerouting priority 5; }"
    script = f"add chain inet guard early {hook}; add rule inet guard early ip saddr {OUTSIDE} drop"
    cluster.run(host, "nft", f"add table inet guard; {script}")
    try:
        status, found = explained(cluster, OUTSIDE, "30180")
    finally:
        cluster.run(host, "nft", "delete table inet guard")

    assert (5, False) == (status, found.intended)
    assert f"ip saddr {OUTSIDE} drop" in found.difference
    assert f"dropped by the rule ip saddr {OUTSIDE} drop of the chain early" == found.reason
    assert found.fix


def test_affinity_entry(cluster: Cluster) -> None:
    """After a connection the client's entry decides on the endpoint, and is named."""
    to = SocketAddress(address_of("client-pod", 4).__class__(cluster_ips(182)[0]), 80)
    (outcome,) = probe_all([(cluster.lab["client-pod"], Probe(Protocol.TCP, to))])
    _, found = explained(cluster, POD, "default/explained-pinned")

    assert [str(outcome.reached)] == [path.endpoint for path in found.paths]
    assert found.paths[0].affinity_entry
    assert found.intended


def test_forwarding_is_off(cluster: Cluster) -> None:
    """A node that forwards no packets is the cause, although its rules are complete."""
    host = cluster.lab["node1"]
    cluster.run(host, "sysctl", "-qw", "net.ipv4.ip_forward=0")
    try:
        status, found = explained(cluster, OUTSIDE, "30180")
    finally:
        cluster.run(host, "sysctl", "-qw", "net.ipv4.ip_forward=1")
    if not cluster.mode.name.startswith("ipvs"):
        assert (5, "net.ipv4.ip_forward") == (status, found.paths[0].steps[-1].place)
        assert "sysctl" in found.fix
