"""Beside others on one node: their rules are not touched, and what they do to ours is repaired."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import pytest

from tests.lab import Host, tcp

from .cluster import PYPROXY, Cluster, wait_until
from .modes import LEGACY, NFT, needs
from .objects import JsonObject, On, ingress, port, service, slices

REPAIR_SECONDS = 2.0
PRESSURE = Path("/proc/pressure/cpu")
WEB = service("web", 140, port(80, node_port=30140), type="LoadBalancer", ingress=ingress(140))
EMPTY = service("empty", 141, port(80))
PINNED = service("pinned", 142, port(80, "UDP"), sessionAffinity="ClientIP")
OBJECTS: list[JsonObject] = [WEB, *slices(WEB, "pod1-1", "pod2-1"), EMPTY, PINNED, *slices(PINNED, "pod1-1", "pod1-2")]
OTHERS = """
*mangle
:KUBE-IPTABLES-HINT - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
-A PREROUTING -m comment --comment "of the administrator" -j ACCEPT
COMMIT
*filter
:DOCKER-USER - [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
-A INPUT -j KUBE-FIREWALL
-A INPUT -p tcp -m comment --comment "kubernetes service portals" -m tcp --dport 22 -j ACCEPT
-A FORWARD -j DOCKER-USER
-A OUTPUT -j KUBE-FIREWALL
-A DOCKER-USER -s {nobody} -j DROP
-A DOCKER-USER -j RETURN
{guard}COMMIT
*nat
:CNI-POSTROUTING - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
-A POSTROUTING -j CNI-POSTROUTING
-A CNI-POSTROUTING -s {nobody} -j MASQUERADE
COMMIT
"""
NOBODIES = ("192.0.2.7/32", "2001:db8::7/128")
GUARD = (
    '-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment "block incoming localnet connections" '
    "-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP\n"
)
NFT_OTHERS = """
table inet admin {
    set friends { type ipv4_addr; flags interval; elements = { 192.0.2.0/24 } }
    chain input { type filter hook input priority 5; policy accept; ip saddr @friends counter accept; }
}
"""


@pytest.fixture(scope="module", autouse=True)
def objects(cluster: Cluster) -> Iterator[None]:
    """Have the objects of this suite."""
    with cluster.having(*OBJECTS):
        yield


# -- their rules


@pytest.fixture
def node_of_others(cluster: Cluster) -> Iterator[Host]:
    """Give a node without rules of ours and with those of others, in both variants; the agents are stopped."""
    node = cluster.lab["node1"]
    cluster.stop()
    for host in cluster.lab.nodes:
        cluster.run(host, PYPROXY, "cleanup")
    for variant in (LEGACY, NFT):
        for restore, nobody, guard in zip(variant.restores, NOBODIES, (GUARD, ""), strict=True):
            # With these programs' own flush, what the cleanup leaves for the kubelet is gone as well.
            cluster.run(node, restore, stdin=OTHERS.format(nobody=nobody, guard=guard))
    node.run("nft", "-f", "-", stdin=NFT_OTHERS)
    yield node
    node.run("nft", "flush", "ruleset")
    for iptables, table in product(LEGACY.iptables, ("mangle", "filter", "nat")):
        cluster.run(node, iptables, "-t", table, "-F")
        cluster.run(node, iptables, "-t", table, "-X")
    cluster.start(*cluster.flags)


def whole_ruleset(cluster: Cluster, node: Host) -> str:
    """Return everything of both variants, without what counts packets and without dates."""
    text = "".join(cluster.run(node, *dump) for variant in (LEGACY, NFT) for dump in variant.dumps)
    tables = cluster.run(node, "nft", "list", "table", "inet", "admin")
    return re.sub(r"^#.*\n| \[\d+:\d+\]$|packets \d+ bytes \d+", "", text + tables, flags=re.MULTILINE)


def of_others(ruleset: str) -> str:
    """Return the lines that are not ours."""
    names = (
        "SERVICES|EXTERNAL-SERVICES|NODEPORTS|POSTROUTING|MARK-MASQ|FORWARD|PROXY-FIREWALL|(SVC|SVL|EXT|FW|SEP)-\\w+"
    )
    ours = re.compile(rf"(PYPROXY-CANARY|KUBE-({names}))\b")
    return "".join(line for line in ruleset.splitlines(keepends=True) if not ours.search(line))


def test_rules_of_others_are_not_touched(cluster: Cluster, node_of_others: Host) -> None:
    """Through a run, a change and a cleanup, every rule of others stays, in its place among others', byte by byte."""
    before = whole_ruleset(cluster, node_of_others)

    cluster.start()
    after_start = whole_ruleset(cluster, node_of_others)
    cluster.put(*slices(WEB, "pod2-2", On("pod1-1", {"ready": False})))
    after_change = whole_ruleset(cluster, node_of_others)
    cluster.stop()
    cluster.run(node_of_others, PYPROXY, "cleanup")
    after_cleanup = whole_ruleset(cluster, node_of_others)
    cluster.run(node_of_others, PYPROXY, "cleanup")

    assert [before] * 2 == [of_others(after_start), of_others(after_change)]
    assert before == after_cleanup
    assert before == whole_ruleset(cluster, node_of_others)
    # Tables of our own are no part of what is compared.
    assert cluster.mode.is_iptables == (after_start != before)
    cluster.put(*slices(WEB, "pod1-1", "pod2-1"))


# -- what they do to ours

BY_IPTABLES = {
    "dispatch flushed": ["-t nat -F KUBE-SERVICES"],
    "all nat rules flushed": ["-t nat -F"],
    "all flushed and deleted": ["-t nat -F", "-t nat -X", "-F", "-X"],
    "hook deleted": ['-t nat -D PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES'],
    "one rule deleted": ["-t nat -D KUBE-SERVICES 1"],
    "a rule slipped in": ["-t nat -I KUBE-SERVICES -j RETURN"],
}
"""What somebody does with iptables, by what it is."""


def run_iptables(cluster: Cluster, node: Host, commands: list[str]) -> None:
    """Run iptables with each of these arguments, for both families."""
    for iptables in cluster.mode.iptables:
        cluster.run(node, "sh", "-e", "-c", "\n".join(f"{iptables} {words}" for words in commands))


def sorted_rules(cluster: Cluster, node: Host) -> list[str]:
    """Return the node's rules; hooks that were put back may stand in another order."""
    rules = re.sub(r" \[\d+:\d+\]$", "", cluster.rules(node), flags=re.MULTILINE)
    return sorted(line for line in rules.splitlines() if not line.startswith("#"))


def waited_for_cpu() -> float:
    """Return for how many seconds so far some process could not run because others did; all, if no kernel tells."""
    if not PRESSURE.exists():
        return time.monotonic()
    [total] = re.findall(r"^some .*total=(\d+)$", PRESSURE.read_text(), re.MULTILINE)
    return int(total) / 1e6


def assert_repaired(cluster: Cluster, disturb: Callable[[Host], object]) -> None:
    """Disturb the rules of a node, and see them as they were soon after, and packets find their way."""
    node = cluster.lab["node1"]
    before = sorted_rules(cluster, node)

    disturb(node)
    started = time.monotonic() - waited_for_cpu()
    assert before != sorted_rules(cluster, node)
    wait_until(lambda: before == sorted_rules(cluster, node), "the rules as they were")
    seconds = time.monotonic() - waited_for_cpu() - started

    outcomes = cluster.lab.client_pod.probe(*(tcp(ip, 80) for ip in WEB["spec"]["clusterIPs"]))
    assert {"pod1-1", "pod2-1"} >= {outcome.server for outcome in outcomes}
    # Of a busy machine only the time counts in which nobody was kept waiting.
    assert seconds < REPAIR_SECONDS


@needs("is_iptables")
@pytest.mark.parametrize("disturbance", BY_IPTABLES)
def test_disturbance_by_iptables_is_repaired(cluster: Cluster, disturbance: str) -> None:
    """Whatever others do to our rules with iptables, in both families, is undone soon."""
    assert_repaired(cluster, lambda node: run_iptables(cluster, node, BY_IPTABLES[disturbance]))


@needs("nft_tables")
def test_flushed_ruleset_is_repaired(cluster: Cluster) -> None:
    """When somebody loads a firewall that begins with a flush of everything, our rules are back soon."""
    assert_repaired(cluster, lambda node: node.run("nft", "flush", "ruleset"))


@needs("nft_tables")
def test_deleted_tables_are_repaired(cluster: Cluster) -> None:
    """When somebody deletes tables that our rules are in, one of each family, they are back soon."""
    tables = "".join(f"delete table {table}\n" for table in (cluster.mode.nft_tables[0], cluster.mode.nft_tables[-1]))
    assert_repaired(cluster, lambda node: node.run("nft", "-f", "-", stdin=tables))
