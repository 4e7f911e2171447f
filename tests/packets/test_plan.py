"""``pyproxy plan`` on a node: what the next sync would change in the kernel."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import partial

import msgspec
import pytest

from pyproxy.cli.plan_report import PlanDocument
from tests.lab import Host
from tests.lab.waiting import wait_until

from .cluster import CLUSTER_CIDR_FLAG, PYPROXY, Cluster
from .objects import JsonObject, ingress, port, service, slices
from .test_restart import without_dates

WEB = service("plan-web", 160, port(80, node_port=30160), type="LoadBalancer", ingress=ingress(160))
LOCAL = service("plan-local", 161, port(80, node_port=30161), type="NodePort", externalTrafficPolicy="Local")
PINNED = service("plan-pinned", 162, port(80, "UDP"), sessionAffinity="ClientIP")
EMPTY = service("plan-empty", 163, port(80))
OBJECTS: list[JsonObject] = [
    *(WEB, *slices(WEB, "pod1-1", "pod2-1")),
    *(LOCAL, *slices(LOCAL, "pod2-1")),
    *(PINNED, *slices(PINNED, "pod1-1", "pod2-1")),
    EMPTY,
]
MOST_DELETIONS = 4
FAMILIES = ["IPv4", "IPv6"]


@pytest.fixture(scope="module", autouse=True)
def objects(cluster: Cluster) -> Iterator[None]:
    """Add objects that together have every kind of rule."""
    with cluster.having(*OBJECTS), cluster.keeping_flags():
        yield


def planned(cluster: Cluster, host: Host) -> tuple[int, PlanDocument]:
    """Return exit code and document of the command on a node, with the flags of its agent."""
    words = (PYPROXY, "plan", *cluster.command(host)[2:], "-o", "json")
    text, _, status = cluster.run(host, "sh", "-c", '"$@"; echo "status $?"', "sh", *words).rpartition("status ")
    return int(status), msgspec.json.decode(text, type=PlanDocument)


def delete(cluster: Cluster, host: Host, table: str, rule: str) -> None:
    """Delete a rule, as it is listed, with the tool of its table."""
    words = shlex.split(rule)
    match table:
        case "ipvs":
            cluster.run(host, "ipvsadm", "-d", *words[1:3], *words[3:5])
        case "ip pyproxy":
            cluster.run(host, "nft", f"delete element {table} {rule}")
        case _:
            cluster.run(host, cluster.mode.iptables[0], "-t", table, "-D", *words[1:])


def deletable(cluster: Cluster, host: Host, name: str) -> list[tuple[str, str]]:
    """Return table and rule of one IPv4 rule of a Service from each chain, set or virtual server."""
    flags = [flag for flag in cluster.mode.flags if not flag.startswith("--ipvs")]
    command = [PYPROXY, "dump-rules", "--live", f"--service=default/{name}", "--family=ipv4", "-o", "json", *flags]
    (family,) = msgspec.json.decode(cluster.run(host, *command))["families"]
    found: dict[tuple[str, str], str] = {}
    for rule in family["services"][0]["rules"]:
        if rule["table"] in {"nat", "filter", "ip pyproxy"} or rule["rule"].startswith("-a "):
            found[rule["table"], rule["chain"]] = rule["rule"].partition("  # ")[0]
    return [(table, rule) for (table, _), rule in found.items()][:MOST_DELETIONS]


def test_nothing_to_change_while_the_agent_runs(cluster: Cluster) -> None:
    """On a node whose agent has synced, no sync changes anything: exit code 0, with the mode and the node."""

    def is_empty(host: Host) -> bool:
        return planned(cluster, host)[0] == 0

    for host in cluster.lab.nodes:
        # In nftables mode, elements of earlier tests are deleted with a delay.
        wait_until(partial(is_empty, host), f"an empty plan on {host.name}")
    _, found = planned(cluster, cluster.lab["node1"])

    assert ([], [], "node1", "kernel") == (found.services, found.shared, found.node, found.source)
    assert f"--proxy-mode={found.mode}" in cluster.mode.flags


@pytest.mark.parametrize("name", ["plan-web", "plan-pinned"])
def test_deleted_rules_are_planned_for_their_service(cluster: Cluster, name: str) -> None:
    """Each rule that was deleted by hand is to be added, for exactly its Service port, and the agent adds it."""
    host = cluster.lab["node1"]
    cluster.stop()

    rules = deletable(cluster, host, name)
    for count, (table, rule) in enumerate(rules, start=1):
        delete(cluster, host, table, rule)
        status, found = planned(cluster, host)

        assert (3, [], [("change", name)]) == (
            status,
            found.shared,
            [(each.action, each.name) for each in found.services],
        )
        assert (count, []) == (len(found.services[0].rules.added), found.services[0].rules.removed)
        assert rule.removesuffix(" }") in "\n".join(found.services[0].rules.added)

    assert rules
    cluster.start(CLUSTER_CIDR_FLAG)
    assert 0 == planned(cluster, host)[0]


def test_a_restart_that_writes_nothing(cluster: Cluster) -> None:
    """If nothing has changed while no agent ran, the plan is empty, and the agent that starts then writes no entry."""
    cluster.stop()
    plans = [planned(cluster, host) for host in cluster.lab.nodes]
    cluster.start(CLUSTER_CIDR_FLAG)

    assert [(0, 0)] * len(plans) == [(status, found.stale_flows) for status, found in plans]
    for agent in cluster.agents.values():
        syncs = re.findall(r"(IPv[46]): full sync done .* 0 refused, 0 entries written$", agent.stderr, re.MULTILINE)
        assert FAMILIES == sorted(syncs)


def test_objects_that_changed_without_an_agent(cluster: Cluster) -> None:
    """Services that were added, changed and removed while no agent ran are planned with their endpoints; nothing is written."""
    host = cluster.lab["node1"]
    cluster.stop()
    new = service("plan-new", 164, port(80))
    cluster.put(new, *slices(new, "pod1-1"), *slices(WEB, "pod1-1"))
    cluster.remove(EMPTY)
    before = without_dates(cluster.rules(host))
    status, found = planned(cluster, host)

    assert before == without_dates(cluster.rules(host))
    assert 3 == status
    changes = {(each.action, each.name, each.family) for each in found.services if each.name.startswith("plan-")}
    assert {
        (action, name, family)
        for action, name in (("add", "plan-new"), ("change", "plan-web"), ("remove", "plan-empty"))
        for family in ("IPv4", "IPv6")
    } == changes
    (removed,) = {len(each.endpoints_removed) for each in found.services if each.name == "plan-web"}
    assert 1 == removed

    cluster.start(CLUSTER_CIDR_FLAG)
    cluster.remove(new, *slices(new, "pod1-1"))
    cluster.put(*OBJECTS)
