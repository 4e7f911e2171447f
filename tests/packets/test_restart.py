"""Starts with existing rules: with its own the agent writes nothing, those of kube-proxy it takes over."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from pyproxy.linux.ruleset_counter import NftGeneration
from tests.cluster.namespace import call_inside
from tests.lab import Host, tcp
from tests.lab.waiting import wait_until

from .cluster import CLUSTER_CIDR_FLAG, PYPROXY, Cluster
from .gate import Gate
from .modes import needs
from .objects import ADDRESSES, JsonObject, ingress, port, service, slices
from .table import Row, rows

PER_SECOND = 100
WEB = service("web", 130, port(80))
LOCAL = service(
    "local",
    131,
    port(80, node_port=30131),
    type="LoadBalancer",
    externalTrafficPolicy="Local",
    healthCheckNodePort=32131,
    ingress=ingress(131),
    loadBalancerSourceRanges=["172.18.0.0/24", "fd00:172:18::/64"],
)
PINNED = service(
    "pinned",
    132,
    port(80, "UDP"),
    sessionAffinity="ClientIP",
    sessionAffinityConfig={"clientIP": {"timeoutSeconds": 100}},
)
EMPTY = service("empty", 133, port(80, "SCTP"))
OBJECTS: list[JsonObject] = [
    *(WEB, *slices(WEB, "pod1-1", "pod2-1")),
    *(LOCAL, *slices(LOCAL, "pod1-1", "pod2-1")),
    *(PINNED, *slices(PINNED, "pod1-1", "pod2-1")),
    EMPTY,
]
KUBE_PROXYS = """
*mangle
:KUBE-PROXY-CANARY - [0:0]
COMMIT
*filter
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-PROXY-CANARY - [0:0]
:KUBE-SERVICES - [0:0]
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-SERVICES -d {old}/{bits} -p tcp -m comment --comment "default/gone has no endpoints" -m tcp --dport 80 -j REJECT
COMMIT
*nat
:KUBE-EXT-OLDOLDOLDOLDOLD2 - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-PROXY-CANARY - [0:0]
:KUBE-SEP-OLDOLDOLDOLDOLD2 - [0:0]
:KUBE-SEP-{web} - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-OLDOLDOLDOLDOLD2 - [0:0]
:KUBE-SVC-{web} - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-EXT-OLDOLDOLDOLDOLD2 -j KUBE-MARK-MASQ
-A KUBE-EXT-OLDOLDOLDOLDOLD2 -j KUBE-SVC-OLDOLDOLDOLDOLD2
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-NODEPORTS -p tcp -m comment --comment "default/gone" -m tcp --dport 30999 -j KUBE-EXT-OLDOLDOLDOLDOLD2
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
-A KUBE-SEP-{web} -p tcp -m comment --comment "default/web" -m tcp -j DNAT --to-destination {endpoint}
-A KUBE-SEP-OLDOLDOLDOLDOLD2 -p tcp -m comment --comment "default/gone" -m tcp -j DNAT --to-destination {endpoint}
-A KUBE-SERVICES -d {old}/{bits} -p tcp -m comment --comment "default/gone cluster IP" -m tcp --dport 81 -j KUBE-SVC-OLDOLDOLDOLDOLD2
-A KUBE-SERVICES -d {ip}/{bits} -p tcp -m comment --comment "default/web cluster IP" -m tcp --dport 80 -j KUBE-SVC-{web}
-A KUBE-SERVICES -m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this chain" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-SVC-OLDOLDOLDOLDOLD2 -m comment --comment "default/gone -> {endpoint}" -j KUBE-SEP-OLDOLDOLDOLDOLD2
-A KUBE-SVC-{web} -m comment --comment "default/web -> {endpoint}" -j KUBE-SEP-{web}
COMMIT
"""
"""Rules of kube-proxy for two Services: default/web, which still exists, and one that has been removed."""
WEB_CHAIN = "LOLE4ISW44XBNF3G"
"""The hash of default/web over TCP in chain names."""


@pytest.fixture(scope="module", autouse=True)
def objects(cluster: Cluster) -> Iterator[None]:
    """Add objects that together have every kind of chain; on exit, restore the earlier flags."""
    with cluster.having(*OBJECTS), cluster.keeping_flags():
        yield


def counted(cluster: Cluster, host: Host) -> dict[str, int]:
    """Return the packet counter of each rule of the dispatch chain."""
    text = "".join(cluster.run(host, *dump, "-c") for dump in cluster.mode.dumps)
    return {
        rule: int(packets) for packets, rule in re.findall(r"^\[(\d+):\d+\] (-A KUBE-SERVICES .*)$", text, re.MULTILINE)
    }


def generation(host: Host) -> int:
    """Return the generation of a node's nf_tables ruleset, the number of commits so far."""
    return call_inside(host.namespace.name, _generation_here)


def _generation_here() -> int:
    here = NftGeneration()
    with closing(here):
        return here.read()


@needs("is_iptables")
def test_restart_without_a_change_writes_nothing(cluster: Cluster, tmp_path: Path) -> None:
    """A restart runs no restore program, makes no commit, and resets no counters."""
    node, gate = cluster.lab["node1"], Gate(cluster.mode, tmp_path)
    cluster.lab.client_pod.probe(*(tcp(ip, 80) for ip in WEB["spec"]["clusterIPs"]))
    cluster.stop()
    rules, packets, commits = cluster.rules(node), counted(cluster, node), generation(node)

    cluster.start(CLUSTER_CIDR_FLAG, env=gate.env)

    assert 0 == gate.count
    assert without_dates(rules) == without_dates(cluster.rules(node))
    assert {} == {rule: count for rule, count in packets.items() if counted(cluster, node)[rule] < count}
    assert any(packets.values())
    assert commits == generation(node)


@needs("nft_tables")
def test_restart_without_a_change_commits_nothing(cluster: Cluster) -> None:
    """A restart makes no commit on any node, and the ruleset does not change."""
    cluster.stop()
    commits = {node.name: generation(node) for node in cluster.lab.nodes}
    rules = {node.name: without_dates(cluster.rules(node)) for node in cluster.lab.nodes}

    cluster.start(CLUSTER_CIDR_FLAG)

    assert commits == {node.name: generation(node) for node in cluster.lab.nodes}
    assert rules == {node.name: without_dates(cluster.rules(node)) for node in cluster.lab.nodes}


def without_dates(rules: str) -> str:
    """Return the output of iptables-save without comment lines and counters of policies."""
    return re.sub(r"^#.*\n| \[\d+:\d+\]$", "", rules, flags=re.MULTILINE)


def test_change_while_the_agent_was_away_is_caught_up(cluster: Cluster) -> None:
    """Changes while no agent ran are programmed at the start."""
    cluster.stop()
    new = service("new", 134, port(80))

    cluster.put(new, *slices(new, "pod1-1"))
    cluster.remove(EMPTY)
    cluster.start(CLUSTER_CIDR_FLAG)

    outcomes = cluster.lab.client_pod.probe(*(tcp(ip, 80) for ip in new["spec"]["clusterIPs"]))
    assert ["pod1-1"] * 2 == [outcome.server for outcome in outcomes]
    assert "default/empty" not in cluster.rules(cluster.lab["node1"])
    cluster.remove(new, *slices(new, "pod1-1"))
    cluster.put(EMPTY)


def test_no_request_fails_while_the_agent_restarts(cluster: Cluster) -> None:
    """No request fails during an orderly stop, a crash, and the starts after them."""
    with cluster.lab.client_pod.load(tcp(WEB["spec"]["clusterIPs"][0], 80), per_second=PER_SECOND) as load:
        cluster.restart(CLUSTER_CIDR_FLAG)
        for agent in cluster.agents.values():
            agent.kill()
        cluster.start(CLUSTER_CIDR_FLAG)
        requests = load.report().requests
        wait_until(lambda: load.report().requests > requests, "one more request")

    assert () == load.report().failures
    assert requests


def test_rules_stay_after_the_agent_was_stopped(cluster: Cluster) -> None:
    """On SIGTERM the agent exits with status 0, and its rules stay."""
    before = cluster.rules(cluster.lab["node1"])
    agents = list(cluster.agents.values())
    cluster.stop()

    assert [0] * len(agents) == [agent.wait() for agent in agents]
    assert without_dates(before) == without_dates(cluster.rules(cluster.lab["node1"]))
    cluster.start(CLUSTER_CIDR_FLAG)


TAKEN_OVER = """
client-pod  web:80/tcp        pod1-1 pod2-1    itself
outside1    node1:30131/tcp   pod1-1           itself
node1       web:80/tcp        pod1-1 pod2-1    node1
"""


@pytest.fixture(scope="module")
def after_kube_proxy(cluster: Cluster) -> Cluster:
    """Provide agents that took over kube-proxy's rules on the first node while its Service served requests."""
    node = cluster.lab["node1"]
    cluster.stop()
    cluster.run(node, PYPROXY, "cleanup", *cluster.mode.flags[1:])
    for index, restore in enumerate(cluster.mode.restores):
        text = KUBE_PROXYS.format(
            old=("10.96.9.9", "fd00:10:96::999")[index],
            ip=WEB["spec"]["clusterIPs"][index],
            bits=(32, 128)[index],
            endpoint=("{}:8080", "[{}]:8080")[index].format(ADDRESSES["pod1-1"][index]),
            web=WEB_CHAIN,
        )
        cluster.run(node, restore, "--noflush", stdin=text)
    with cluster.lab.client_pod.load(tcp(WEB["spec"]["clusterIPs"][0], 80), per_second=PER_SECOND) as load:
        cluster.start(CLUSTER_CIDR_FLAG)
    assert () == load.report().failures
    assert load.report().requests
    return cluster


@needs("is_iptables")
@rows(TAKEN_OVER, OBJECTS)
def test_packet_after_taking_over_from_kube_proxy(after_kube_proxy: Cluster, row: Row) -> None:
    """After the takeover the agent serves all Services."""
    assert after_kube_proxy.expected(row) == after_kube_proxy.observed(row)


@needs("is_iptables")
def test_what_kube_proxy_left_is_gone(after_kube_proxy: Cluster) -> None:
    """Chains and rules of removed Services are deleted, the canary soon after, and hooks are not duplicated."""
    node = after_kube_proxy.lab["node1"]
    rules = after_kube_proxy.rules(node)

    assert "default/gone" not in rules
    assert "OLDOLD" not in rules
    assert f"KUBE-SEP-{WEB_CHAIN}" not in rules
    assert 2 == len(re.findall(r"^-A PREROUTING .*-j KUBE-SERVICES$", rules, re.MULTILINE))
    wait_until(lambda: ":KUBE-PROXY-CANARY" not in after_kube_proxy.rules(node), "the deletion of the canary")
