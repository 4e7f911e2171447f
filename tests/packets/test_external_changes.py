"""Other programs on the node: foreign rules are not changed, and external changes of our rules are repaired."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import pytest

from tests.lab import Host, tcp
from tests.lab.waiting import wait_until

from .cluster import PYPROXY, Cluster
from .modes import LEGACY, NFT, needs
from .objects import JsonObject, On, ingress, port, service, slices

REPAIR_SECONDS = 2.0
PRESSURE = Path("/proc/pressure/cpu")
WEB = service("web", 140, port(80, node_port=30140), type="LoadBalancer", ingress=ingress(140))
EMPTY = service("empty", 141, port(80))
PINNED = service("pinned", 142, port(80, "UDP"), sessionAffinity="ClientIP")
OBJECTS: list[JsonObject] = [WEB, *slices(WEB, "pod1-1", "pod2-1"), EMPTY, PINNED, *slices(PINNED, "pod1-1", "pod1-2")]
FOREIGN = """
*mangle
:KUBE-IPTABLES-HINT - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
-A PREROUTING -m comment --comment "administrator" -j ACCEPT
COMMIT
*filter
:DOCKER-USER - [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
-A INPUT -j KUBE-FIREWALL
-A INPUT -p tcp -m comment --comment "kubernetes service portals" -m tcp --dport 22 -j ACCEPT
-A FORWARD -j DOCKER-USER
-A OUTPUT -j KUBE-FIREWALL
-A DOCKER-USER -s {unused} -j DROP
-A DOCKER-USER -j RETURN
{guard}COMMIT
*nat
:CNI-POSTROUTING - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
-A POSTROUTING -j CNI-POSTROUTING
-A CNI-POSTROUTING -s {unused} -j MASQUERADE
COMMIT
"""
UNUSED = ("192.0.2.7/32", "2001:db8::7/128")
GUARD = (
    '-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment "block incoming localnet connections" '
    "-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP\n"
)
NFT_FOREIGN = """
table inet admin {
    set friends { type ipv4_addr; flags interval; elements = { 192.0.2.0/24 } }
    chain input { type filter hook input priority 5; policy accept; ip saddr @friends counter accept; }
}
"""


@pytest.fixture(scope="module", autouse=True)
def objects(cluster: Cluster) -> Iterator[None]:
    """Add the objects of this suite."""
    with cluster.having(*OBJECTS):
        yield


# -- foreign rules


@pytest.fixture
def node_with_foreign_rules(cluster: Cluster) -> Iterator[Host]:
    """Provide a node with only foreign rules, in both variants, and with stopped agents."""
    node = cluster.lab["node1"]
    cluster.stop()
    for host in cluster.lab.nodes:
        cluster.run(host, PYPROXY, "cleanup")
    for variant in (LEGACY, NFT):
        for restore, unused, guard in zip(variant.restores, UNUSED, (GUARD, ""), strict=True):
            # This flush also removes the rules that the cleanup leaves for the kubelet.
            cluster.run(node, restore, stdin=FOREIGN.format(unused=unused, guard=guard))
    node.run("nft", "-f", "-", stdin=NFT_FOREIGN)
    yield node
    node.run("nft", "flush", "ruleset")
    for iptables, table in product(LEGACY.iptables, ("mangle", "filter", "nat")):
        cluster.run(node, iptables, "-t", table, "-F")
        cluster.run(node, iptables, "-t", table, "-X")
    cluster.start(*cluster.flags)


def whole_ruleset(cluster: Cluster, node: Host) -> str:
    """Return all rules of both variants, without counters and dates."""
    text = "".join(cluster.run(node, *dump) for variant in (LEGACY, NFT) for dump in variant.dumps)
    tables = cluster.run(node, "nft", "list", "table", "inet", "admin")
    return re.sub(r"^#.*\n| \[\d+:\d+\]$|packets \d+ bytes \d+", "", text + tables, flags=re.MULTILINE)


def foreign_rules(ruleset: str) -> str:
    """Return the lines that do not belong to pyproxy."""
    names = (
        "SERVICES|EXTERNAL-SERVICES|NODEPORTS|POSTROUTING|MARK-MASQ|FORWARD|PROXY-FIREWALL|(SVC|SVL|EXT|FW|SEP)-\\w+"
    )
    ours = re.compile(rf"(PYPROXY-CANARY|KUBE-({names}))\b")
    return "".join(line for line in ruleset.splitlines(keepends=True) if not ours.search(line))


def test_foreign_rules_are_not_changed(cluster: Cluster, node_with_foreign_rules: Host) -> None:
    """Through a run, a change and a cleanup, all foreign rules stay byte for byte, in the same order."""
    before = whole_ruleset(cluster, node_with_foreign_rules)

    cluster.start()
    after_start = whole_ruleset(cluster, node_with_foreign_rules)
    cluster.put(*slices(WEB, "pod2-2", On("pod1-1", {"ready": False})))
    after_change = whole_ruleset(cluster, node_with_foreign_rules)
    cluster.stop()
    cluster.run(node_with_foreign_rules, PYPROXY, "cleanup")
    after_cleanup = whole_ruleset(cluster, node_with_foreign_rules)
    cluster.run(node_with_foreign_rules, PYPROXY, "cleanup")

    assert [before] * 2 == [foreign_rules(after_start), foreign_rules(after_change)]
    assert before == after_cleanup
    assert before == whole_ruleset(cluster, node_with_foreign_rules)
    # Our own tables are not compared.
    assert cluster.mode.is_iptables == (after_start != before)
    cluster.put(*slices(WEB, "pod1-1", "pod2-1"))


# -- external changes

BY_IPTABLES = {
    "dispatch flushed": ["-t nat -F KUBE-SERVICES"],
    "all nat rules flushed": ["-t nat -F"],
    "all flushed and deleted": ["-t nat -F", "-t nat -X", "-F", "-X"],
    "hook deleted": ['-t nat -D PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES'],
    "one rule deleted": ["-t nat -D KUBE-SERVICES 1"],
    "a rule inserted": ["-t nat -I KUBE-SERVICES -j RETURN"],
}
"""External changes by iptables."""


def run_iptables(cluster: Cluster, node: Host, commands: list[str]) -> None:
    """Run iptables with each of these argument lists, for both families."""
    for iptables in cluster.mode.iptables:
        cluster.run(node, "sh", "-e", "-c", "\n".join(f"{iptables} {words}" for words in commands))


def sorted_rules(cluster: Cluster, node: Host) -> list[str]:
    """Return the sorted rules of a node: restored hooks may be in another order."""
    rules = re.sub(r" \[\d+:\d+\]$", "", cluster.rules(node), flags=re.MULTILINE)
    return sorted(line for line in rules.splitlines() if not line.startswith("#"))


def waited_for_cpu() -> float:
    """Return for how many seconds any process has waited for a CPU; all seconds, if the kernel does not report it."""
    if not PRESSURE.exists():
        return time.monotonic()
    [total] = re.findall(r"^some .*total=(\d+)$", PRESSURE.read_text(), re.MULTILINE)
    return int(total) / 1e6


def assert_repaired(cluster: Cluster, change: Callable[[Host], object]) -> None:
    """Change the rules of a node externally, and check that they are repaired soon, and that packets pass."""
    node = cluster.lab["node1"]
    before = sorted_rules(cluster, node)

    # On a busy machine the agent could repair the rules before they are listed.
    agent = cluster.agents[node.name]
    agent.signal(signal.SIGSTOP)
    try:
        change(node)
        assert before != sorted_rules(cluster, node)
    finally:
        agent.signal(signal.SIGCONT)
    started = time.monotonic() - waited_for_cpu()
    wait_until(lambda: before == sorted_rules(cluster, node), "the repair of the rules")
    seconds = time.monotonic() - waited_for_cpu() - started

    outcomes = cluster.lab.client_pod.probe(*(tcp(ip, 80) for ip in WEB["spec"]["clusterIPs"]))
    assert {"pod1-1", "pod2-1"} >= {outcome.server for outcome in outcomes}
    # On a busy machine only the time without waiting for a CPU counts.
    assert seconds < REPAIR_SECONDS


@needs("is_iptables")
@pytest.mark.parametrize("change", BY_IPTABLES)
def test_change_by_iptables_is_repaired(cluster: Cluster, change: str) -> None:
    """External changes by iptables are repaired soon, in both families."""
    assert_repaired(cluster, lambda node: run_iptables(cluster, node, BY_IPTABLES[change]))


@needs("nft_tables")
def test_flushed_ruleset_is_repaired(cluster: Cluster) -> None:
    """The rules are restored soon after a firewall flushes the whole ruleset."""
    assert_repaired(cluster, lambda node: node.run("nft", "flush", "ruleset"))


@needs("nft_tables")
def test_deleted_tables_are_repaired(cluster: Cluster) -> None:
    """The rules are restored soon after tables that contain them are deleted, one in each family."""
    tables = "".join(f"delete table {table}\n" for table in (cluster.mode.nft_tables[0], cluster.mode.nft_tables[-1]))
    assert_repaired(cluster, lambda node: node.run("nft", "-f", "-", stdin=tables))
