"""Metrics of running agents, compared with the kernel and with what the test has done."""

from __future__ import annotations

import re
import socket
import struct
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.cluster.namespace import call_inside
from tests.lab import Host, Verdict, sctp, tcp, udp
from tests.lab.waiting import wait_until

from .cluster import CLUSTER_CIDR_FLAG, Cluster
from .modes import needs
from .objects import ADDRESSES, JsonObject, port, public, service, slices

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]

FAMILIES = ("IPv4", "IPv6")
TABLES = ("filter", "nat")
SYNC = "kubeproxy_sync_proxy_rules_"
PARTIAL = "kubeproxy_sync_partial_proxy_rules_duration_seconds_count"
WEB = service("web", 140, port(80))
NODE_PORT = service("noded", 142, port(80, name="t", node_port=30142), port(80, "UDP", name="u", node_port=30142))
MIXED = service(
    "mixed",
    143,
    *(port(80, protocol, name=protocol.lower(), node_port=30143) for protocol in ("TCP", "UDP", "SCTP")),
)
LOCAL = service("local", 144, port(80, "SCTP", node_port=30144), externalTrafficPolicy="Local")
ELSEWHERE = service("elsewhere", 141, port(80, name="tcp"), port(80, "UDP", name="udp"), internalTrafficPolicy="Local")


@pytest.fixture(scope="module", autouse=True)
def serving(cluster: Cluster) -> Iterator[None]:
    """Run agents that serve metrics on the loopback of their node; on exit, restore their earlier flags."""
    with cluster.keeping_flags():
        cluster.restart(CLUSTER_CIDR_FLAG, "--metrics-bind-address=127.0.0.1:10249")
        yield


def changed_at(endpoint_slices: list[JsonObject], moment: datetime) -> list[JsonObject]:
    """Set the annotation with the time of the change that triggered a slice."""
    for each in endpoint_slices:
        each["metadata"]["annotations"] = {"endpoints.kubernetes.io/last-change-trigger-time": moment.isoformat()}
    return endpoint_slices


def get(host: Host, path: str) -> str:
    """Return a path of the metrics server of a node, requested on its loopback."""

    def ask() -> str:
        connection = HTTPConnection("127.0.0.1", 10249, timeout=10)
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read().decode()
        connection.close()
        assert answer.status == 200, body
        return body

    return call_inside(host.namespace.name, ask)


def samples(host: Host) -> Samples:
    """Return all samples of the agent of a node."""
    families = text_string_to_metric_families(get(host, "/metrics"))
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def value(host: Host, name: str, **labels: str) -> float | None:
    """Return one sample of the agent of a node."""
    return samples(host).get((name, frozenset(labels.items())))


def rules_by_table(cluster: Cluster, host: Host) -> dict[tuple[str, str], float]:
    """Return the number of rules that are in our chains or jump to them, by family and table."""
    found: dict[tuple[str, str], float] = {}
    for family, dump in zip(FAMILIES, cluster.mode.dumps, strict=True):
        for table in TABLES:
            text = cluster.run(host, *dump, "-t", table)
            found[family, table] = len(re.findall(r"^-A (?:KUBE-|.* -j KUBE-)", text, re.MULTILINE))
    return found


def reported_rules(host: Host, name: str) -> dict[tuple[str, str], float | None]:
    """Return the number of rules that the agent reports, by family and table."""
    found = samples(host)
    return {
        (family, table): found.get((name, frozenset({("ip_family", family), ("table", table)})))
        for family in FAMILIES
        for table in TABLES
    }


def test_the_mode_is_reported(cluster: Cluster) -> None:
    """/proxyMode returns the mode in use."""
    assert get(cluster.lab["node1"], "/proxyMode") == cluster.mode.name.partition("-")[0]


@needs("is_iptables")
def test_rules_are_counted_as_the_kernel_has_them(cluster: Cluster) -> None:
    """After a start, an added and a removed Service, the reported number of rules equals that in the kernel."""
    node = cluster.lab["node1"]

    def agrees() -> bool:
        return rules_by_table(cluster, node) == reported_rules(node, f"{SYNC}iptables_total")

    wait_until(agrees, "the rules after a start")
    before = rules_by_table(cluster, node)
    with cluster.having(WEB, *slices(WEB, "pod2-1")):
        wait_until(agrees, "the rules with one more Service")
        assert all(count > before[key] for key, count in rules_by_table(cluster, node).items() if key[1] == "nat")
        written = reported_rules(node, f"{SYNC}iptables_last")
        assert all(count is not None and 0 < count < before[key] for key, count in written.items() if key[1] == "nat")
    wait_until(agrees, "the rules after the Service was removed")


def test_changes_and_syncs_are_counted(cluster: Cluster) -> None:
    """Adding a Service counts as one change and one sync, which has ended when no change is pending."""
    node = cluster.lab["node1"]
    before = samples(node)
    begin = time.time()
    with cluster.having(WEB, *slices(WEB, "pod2-1")):
        wait_until(lambda: value(node, f"{SYNC}service_changes_pending") == 0, "nothing is pending")
        after = samples(node)

    for name, labels in (
        (f"{SYNC}service_changes_total", {}),
        (f"{SYNC}endpoint_changes_total", {}),
        (f"{SYNC}duration_seconds_count", {"ip_family": "IPv4"}),
        (f"{SYNC}duration_seconds_count", {"ip_family": "IPv6"}),
        # As in kube-proxy, whose IPVS mode does only full syncs.
        *((PARTIAL, {"ip_family": "IPv4"}) for _ in range(cluster.mode.name != "ipvs")),
    ):
        key = name, frozenset(labels.items())
        assert after[key] > before.get(key, 0), name
    for name in ("last_queued_timestamp_seconds", "last_timestamp_seconds"):
        assert begin <= after[f"{SYNC}{name}", frozenset({("ip_family", "IPv6")})] <= time.time()


def test_ports_without_local_endpoints_are_counted(cluster: Cluster) -> None:
    """Both ports of a Service with policy Local count on the node without its endpoints, and on no other node."""
    name, labels = f"{SYNC}no_local_endpoints_total", {"traffic_policy": "internal", "ip_family": "IPv6"}

    def is_reported(ports: int) -> bool:
        return [ports, 0] == [value(cluster.lab[node], name, **labels) for node in ("node1", "node2")]

    with cluster.having(ELSEWHERE, *slices(ELSEWHERE, "pod2-1")):
        wait_until(lambda: is_reported(2), "two ports without local endpoints")
    wait_until(lambda: is_reported(0), "no ports without local endpoints")


def test_network_programming_is_measured(cluster: Cluster) -> None:
    """A slice with a trigger time is measured in its family; a time before the start is not."""
    node = cluster.lab["node1"]
    name, old = "kubeproxy_network_programming_duration_seconds", datetime.now(UTC) - timedelta(hours=1)

    def counted() -> list[float]:
        return [value(node, f"{name}_count", ip_family=family) or 0 for family in FAMILIES]

    before = counted()
    with cluster.having(WEB, *changed_at(slices(WEB, "pod2-1"), old)):
        wait_until(lambda: value(node, f"{SYNC}endpoint_changes_pending") == 0, "the old change")
        assert before == counted()
        cluster.put(*changed_at(slices(WEB, "pod2-2"), datetime.now(UTC))[:1])
        wait_until(lambda: counted() == [before[0] + 1, before[1]], "the new change")
        assert (value(node, f"{name}_bucket", ip_family="IPv4", le="60") or 0) > (
            value(node, f"{name}_bucket", ip_family="IPv4", le="0") or 0
        )


def test_what_is_programmed_is_counted_and_shown(cluster: Cluster) -> None:
    """Ports, addresses and endpoints of a Service are counted by family while it exists, and shown on the status page."""
    node = cluster.lab["node1"]
    kinds = ("service_port", "cluster_ip", "external_ip", "load_balancer_ip", "node_port", "endpoint")

    def counted() -> list[float]:
        return [value(node, "pyproxy_programmed", ip_family="IPv6", kind=kind) or 0 for kind in kinds]

    before = counted()
    web = service("web", 140, port(80), type="NodePort", externalIPs=public(140))
    web["spec"]["ports"][0]["nodePort"] = 30140
    with cluster.having(web, *slices(web, "pod2-1", "pod2-2")):
        wait_until(
            lambda: counted() == [a + b for a, b in zip(before, (1, 1, 1, 0, 1, 2), strict=True)], "one Service more"
        )
        [line] = [line for line in get(node, "/statusz").splitlines() if "service port " in line]
        assert ["service", "port", *[f"{before[0] + 1:.0f}"] * 2] == line.split()
    wait_until(lambda: counted() == before, "the Service is removed")


def test_connection_tracking_is_reported(cluster: Cluster) -> None:
    """The size, limit and insert failures of the conntrack table of the node's namespace are reported."""
    node = cluster.lab["node1"]
    limit = cluster.run(node, "cat", "/proc/sys/net/netfilter/nf_conntrack_max")

    assert float(limit) == value(node, "pyproxy_conntrack_entries_limit")
    cluster.run(node, "conntrack", "--flush")
    assert (value(node, "pyproxy_conntrack_entries") or 0) < 50
    assert value(node, "pyproxy_conntrack_insert_failures_total") == 0


def unsolicited_reply(address: str) -> None:
    """Send an echo reply without a request."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
        raw.sendto(struct.pack("!BBHHH", 0, 0, 0xFFFF - 7, 7, 0), (address, 0))


@needs("is_iptables")
def test_invalid_packets_are_counted(cluster: Cluster) -> None:
    """A packet that belongs to no connection is dropped and counted on the node that forwards it."""
    node, name = cluster.lab["node1"], "kubeproxy_iptables_ct_state_invalid_dropped_packets_total"
    before = value(node, name)
    call_inside(cluster.lab["pod1-1"].namespace.name, lambda: unsolicited_reply(ADDRESSES["pod2-1"][0]))

    assert before is not None
    wait_until(lambda: value(node, name) == before + 1, "a packet that was counted")


@needs("localhost_node_ports")
def test_packets_to_localhost_node_ports_are_counted(cluster: Cluster) -> None:
    """The first packet of a connection to a node port is counted on 127.0.0.1, but not on the node's address."""
    node, name = cluster.lab["node1"], "kubeproxy_iptables_localhost_nodeports_accepted_packets_total"
    with cluster.having(NODE_PORT, *slices(NODE_PORT, "pod1-1", "pod2-1")):
        before = value(node, name)
        outcomes = node.probe(*[tcp("127.0.0.1", 30142)] * 3, tcp(node.address(4), 30142), udp("127.0.0.1", 30142))

        assert before is not None
        assert {"pod1-1", "pod2-1"} >= {outcome.server for outcome in outcomes}
        wait_until(lambda: value(node, name) == before + 4, "four packets that were counted")


@needs("relay_rejects_sctp")
@pytest.mark.parametrize("family", FAMILIES)
def test_packets_to_sctp_node_ports_on_localhost_are_counted(cluster: Cluster, family: str) -> None:
    """The relay does not serve SCTP: packets to those node ports on loopback are rejected and counted, and only they."""
    node, name = cluster.lab["node1"], "kubeproxy_nftables_localhost_nodeport_rejected_packets_total"
    version = int(family[-1])
    loopback = "::1" if family == "IPv6" else "127.0.0.1"
    counted = [sctp(loopback, 30143), sctp(loopback, 30144)]
    not_counted = [
        tcp(loopback, 30143),
        udp(loopback, 30143),
        sctp(loopback, 30199),
        sctp(node.address(version), 30143),
    ]

    def rejected() -> list[float | None]:
        return [value(node, name, ip_family=each, protocol="SCTP") for each in FAMILIES]

    with cluster.having(*(item for each in (MIXED, LOCAL) for item in (each, *slices(each, "pod1-1")))):
        assert [None, None] == rejected()
        with cluster.keeping_flags():
            cluster.restart(
                CLUSTER_CIDR_FLAG, "--metrics-bind-address=127.0.0.1:10249", "--nodeport-addresses=primary,localhost"
            )
            assert [0, 0] == rejected()
            assert ["pod1-1", "pod1-1", None, "pod1-1"] == [outcome.server for outcome in node.probe(*not_counted)]
            assert [0, 0] == rejected()
            assert [Verdict.REFUSED] * 2 == [outcome.verdict for outcome in node.probe(*counted)]
            assert [2 * (each == family) for each in FAMILIES] == rejected()
        assert [None, None] == rejected()


@needs("is_iptables")
def test_repairs_are_counted(cluster: Cluster) -> None:
    """A chain that another program flushed counts as repaired once it is restored, only in its family."""
    node = cluster.lab["node1"]
    before = [value(node, "pyproxy_repaired_entries_total", ip_family=family) for family in FAMILIES]

    cluster.run(node, cluster.mode.iptables[0], "-w", "-t", "nat", "-F", "KUBE-MARK-MASQ")

    def repaired() -> list[float | None]:
        return [value(node, "pyproxy_repaired_entries_total", ip_family=family) for family in FAMILIES]

    assert before[0] is not None
    wait_until(lambda: repaired() == [(before[0] or 0) + 1, before[1]], "one repaired chain")
    assert "-A KUBE-MARK-MASQ" in cluster.rules(node)
