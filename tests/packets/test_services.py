"""``pyproxy services`` on Services that are broken in different ways: its states are those that packets meet."""

from __future__ import annotations

import json
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

import pytest

from tests.lab import LabError, Probe, Protocol, SocketAddress, Verdict, probe_all

from .cluster import CLUSTER_CIDR_FLAG, PYPROXY, Cluster
from .objects import (
    ADDRESSES,
    FAMILIES,
    JsonObject,
    ingress,
    not_ready,
    port,
    public,
    service,
    slices,
    terminating,
    unnumbered_service,
)
from .table import SILENCE_SECONDS
from .test_external_addresses import ports, single

WORKS = service("works", 160, *ports(30160), type="LoadBalancer", externalIPs=public(60), ingress=ingress(61))
WITHOUT_SLICES = service(
    "without-slices", 161, *ports(30161), type="LoadBalancer", externalIPs=public(62), ingress=ingress(63)
)
EMPTY = service("empty", 162, *ports(30162), type="NodePort")
NOT_READY = service("not-ready", 163, *ports(30163), type="NodePort", externalIPs=public(64))
ENDING = service("ending", 164, *ports(30164), type="NodePort")
MISMATCH = service("mismatch", 165, *ports(30165), type="NodePort")
EXTERNAL_ELSEWHERE = service(
    "external-elsewhere",
    166,
    *ports(30166),
    type="LoadBalancer",
    externalTrafficPolicy="Local",
    healthCheckNodePort=32166,
    externalIPs=public(65),
    ingress=ingress(66),
)
INTERNAL_ELSEWHERE = service("internal-elsewhere", 167, *ports(30167), type="NodePort", internalTrafficPolicy="Local")
UNREADY_HERE = service("unready-here", 168, *ports(30168), type="NodePort", externalTrafficPolicy="Local")
RANGED = service(
    "ranged",
    169,
    *ports(30169),
    type="LoadBalancer",
    ingress=ingress(67),
    loadBalancerSourceRanges=[*map(single, ADDRESSES["outside1"])],
)
ON_NODE1 = service("on-node1", 172, *ports(30172), type="NodePort", externalTrafficPolicy="Local")
OLDER = service("older", 170, port(80), externalIPs=public(68))
YOUNGER = service("younger", 171, port(80), externalIPs=public(68))
HEADLESS = unnumbered_service("headless", port(80), clusterIP="None", clusterIPs=["None", "None"])
INVALID = service("invalid", 173, port(80)) | {"spec": {"ports": "none"}}
OBJECTS: list[JsonObject] = [
    *(WORKS, *slices(WORKS, "pod1-1", "pod2-1")),
    WITHOUT_SLICES,
    *(EMPTY, *slices(EMPTY)),
    *(NOT_READY, *slices(NOT_READY, not_ready("pod1-1"), not_ready("pod2-1"))),
    *(ENDING, *slices(ENDING, terminating("pod1-1"))),
    *(MISMATCH, *slices({**MISMATCH, "spec": {**MISMATCH["spec"], "ports": [port(80, name="web")]}}, "pod1-1")),
    *(EXTERNAL_ELSEWHERE, *slices(EXTERNAL_ELSEWHERE, "pod2-1")),
    *(INTERNAL_ELSEWHERE, *slices(INTERNAL_ELSEWHERE, "pod2-1")),
    *(UNREADY_HERE, *slices(UNREADY_HERE, not_ready("pod1-1"), "pod2-1")),
    *(RANGED, *slices(RANGED, "pod1-1")),
    *(ON_NODE1, *slices(ON_NODE1, "pod1-1")),
    *(OLDER, *slices(OLDER, "pod1-1")),
    *(YOUNGER, *slices(YOUNGER, "pod2-1")),
    HEADLESS,
    INVALID,
]
STATES = {Verdict.REPLY: "ok", Verdict.REFUSED: "reject", Verdict.TIMEOUT: "drop"}
CLIENTS = {"node1": "client-pod", "node2": "pod2-3"}
"""On each node a pod that is not an endpoint."""
ROUTED_TO = "node1"
"""The node to which external hosts route public addresses."""


@pytest.fixture(scope="module", autouse=True)
def objects(cluster: Cluster) -> Iterator[None]:
    """Have the broken Services."""
    with cluster.having(*OBJECTS):
        yield


def live(cluster: Cluster, node: str, *words: str) -> str:
    """Return what the command prints on a node with an agent."""
    host = cluster.lab[node]
    return cluster.run(host, PYPROXY, "services", f"--control-socket={cluster.control_socket(host)}", *words)


def items(text: str) -> list[dict[str, Any]]:
    """Return the items of a document, without the mark of the suite."""
    return [item for item in json.loads(text)["items"] if item["name"] != "mark"]


def probe(item: dict[str, Any], node: str) -> Probe:
    """Return a probe of a frontend, as a client of a node sends it."""
    frontend = item["frontend"]
    ip = ip_address(frontend["address"])
    if ip.is_unspecified:
        ip = ip_address(ADDRESSES[node][FAMILIES.index(frontend["family"])])
    timeout = SILENCE_SECONDS if item["state"] == "drop" else None
    return Probe(Protocol(frontend["protocol"]), SocketAddress(ip, frontend["port"]), timeout_seconds=timeout)


def key(item: dict[str, Any]) -> str:
    """Return the Service and the frontend of an item."""
    return f"{item['name']} {item['frontend']}"


@pytest.mark.parametrize("node", ["node1", "node2"])
def test_states_are_those_that_packets_meet(cluster: Cluster, node: str) -> None:
    """A frontend that is ok answers, one with REJECT refuses, and one with DROP is silent: every frontend, for real."""
    found = items(live(cluster, node, "-o", "json"))
    own = {"ClusterIP", "NodePort"} | ({"ExternalIP", "LoadBalancer"} if node == ROUTED_TO else set())
    shown = [item for item in found if item["trafficPolicy"] and item["frontend"]["type"] in own]
    sources = [CLIENTS[node] if item["frontend"]["type"] == "ClusterIP" else "outside1" for item in shown]

    outcomes = probe_all(
        [(cluster.lab[source], probe(item, node)) for source, item in zip(sources, shown, strict=True)]
    )

    met = {key(item): STATES.get(outcome.verdict) for item, outcome in zip(shown, outcomes, strict=True)}
    assert {key(item): item["state"] for item in shown} == met
    assert {"ok", "reject", "drop"} == set(met.values())
    assert {"programmed"} == {item["sync"] for item in found if item["frontend"]}


def test_source_ranges_exclude_other_clients(cluster: Cluster) -> None:
    """The frontends that are ok for some source ranges only are silent to a client outside of these."""
    ranged = [item for item in items(live(cluster, "node1", "-o", "json")) if item["sourceRanges"]]

    outcomes = probe_all([(cluster.lab["outside2"], probe(item | {"state": "drop"}, "node1")) for item in ranged])

    assert {"ranged"} == {item["name"] for item in ranged}
    assert {Verdict.TIMEOUT} == {outcome.verdict for outcome in outcomes}


@pytest.mark.parametrize(
    ("name", "node", "reason"),
    [
        ("without-slices", "node1", "REJECT: the Service has no EndpointSlice"),
        ("empty", "node1", "REJECT: the EndpointSlices of the Service list no endpoint"),
        ("not-ready", "node1", "REJECT: all 2 endpoints are not ready"),
        ("mismatch", "node1", 'REJECT: slice has port "web", Service wants "tcp"'),
        ("external-elsewhere", "node1", "DROP: 1 endpoint elsewhere"),
        ("internal-elsewhere", "node1", "DROP: 1 endpoint elsewhere"),
        ("unready-here", "node1", "1 here not ready"),
        ("ranged", "node1", "ok, only from "),
        ("headless", "node1", "no rules: the Service is headless"),
        ("invalid", "node1", "invalid: spec.ports: "),
        ("younger", "node1", "no rules: Service default/older has the same address and port"),
    ],
)
def test_the_cause_is_named(cluster: Cluster, name: str, node: str, reason: str) -> None:
    """The table names the cause of each fault."""
    assert reason in live(cluster, node, f"default/{name}")


@pytest.mark.parametrize("node", ["node1", "node2"])
def test_files_say_the_same_as_the_agent(cluster: Cluster, node: str) -> None:
    """From the same files, without an agent, the command shows the same frontends with the same states."""
    files = [PYPROXY, "services", f"--manifests={cluster.manifests}", f"--node={node}", CLUSTER_CIDR_FLAG]
    planned = items(cluster.run(cluster.lab[node], *files, cluster.mode.flags[0], "-o", "json"))
    expected = items(live(cluster, node, "-o", "json"))

    assert [item | {"sync": None} for item in expected] == planned


def test_without_an_agent_the_kernel_is_shown(cluster: Cluster) -> None:
    """Where no agent answers, the command lists the Services that have rules in the kernel."""
    host = cluster.lab["node1"]
    text = cluster.run(host, PYPROXY, "services", "--control-socket=/nonexistent", "-n", "default")
    heading, *lines = text.splitlines()

    assert ["SERVICE", "PORT", "PROTOCOL", "FAMILY", "RULES", "STATE"] == heading.split()
    for family in FAMILIES:
        [line] = [line for line in lines if line.split()[:4] == ["default/works", "tcp", "TCP", family]]
        assert line.endswith("in the kernel, no agent runs")
        assert int(line.split()[4]) > 0


def test_an_unknown_service(cluster: Cluster) -> None:
    """A Service that the agent does not know ends the command with a message, not with an empty table."""
    host = cluster.lab["node1"]
    command = [PYPROXY, "services", f"--control-socket={cluster.control_socket(host)}", "default/unknown"]
    with pytest.raises(LabError, match="the agent knows no Service default/unknown: it does not exist, is headless"):
        cluster.run(host, *command)
