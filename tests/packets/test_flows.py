"""Existing flows when rules change: only stale UDP flows are deleted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from signal import SIGCONT, SIGSTOP

import pytest

from tests.lab import Connection, Outcome, Probe, RefusedBy, Verdict, tcp, udp
from tests.lab.waiting import wait_until

from .cluster import Cluster
from .modes import needs
from .objects import VERSIONS, JsonObject, port, public, service, slices, terminating
from .table import SILENCE_SECONDS, address_of

SOURCE_PORT = 12345
SOCKETS = 8
REFUSED = Outcome(Verdict.REFUSED, refused_by=RefusedBy.PORT_UNREACHABLE, error="ECONNREFUSED")

DNS = service(
    "dns", 120, port(53, "UDP", name="u", node_port=30120), port(53, name="t"), type="NodePort", externalIPs=public(120)
)
BYSTANDER = service("bystander", 121, port(53, "UDP"))
NEW = service("new", 122, port(53, "UDP"))

TRACKING = """
table inet admin {
    chain seen { type filter hook forward priority 5; ct state new counter; }
}
"""
"""Foreign rules that enable connection tracking, independently of pyproxy's rules."""


@pytest.fixture(scope="module", autouse=True)
def services(cluster: Cluster) -> Iterator[None]:
    """Add two Services with the same endpoint."""
    with cluster.having(DNS, BYSTANDER, *slices(DNS, "pod1-1"), *slices(BYSTANDER, "pod1-1")):
        yield


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    """Provide a stack that closes the sockets of a test."""
    with ExitStack() as stack:
        yield stack


def cluster_ip(item: JsonObject, version: int) -> str:
    """Return the cluster IP of the Service."""
    return str(item["spec"]["clusterIPs"][VERSIONS.index(version)])


def connect(cluster: Cluster, opened: ExitStack, *probes: Probe) -> list[Connection]:
    """Open sockets with fixed source ports in the client pod."""
    return [opened.enter_context(cluster.lab.client_pod.connect(probe)) for probe in probes]


def answers(sockets: list[Connection]) -> list[str | None]:
    """Send a datagram through each socket, and return the names of the servers."""
    return [socket.ask().server for socket in sockets]


def wait_for_server(sockets: list[Connection], server: str) -> None:
    """Wait until one server answers through all sockets."""
    wait_until(lambda: {server} == set(answers(sockets)), f"answers of {server} only")


def test_udp_sockets_move_to_the_new_endpoint(cluster: Cluster, opened: ExitStack) -> None:
    """A socket with a fixed source port leaves a removed endpoint, even if that still answers."""
    cluster.put(*slices(DNS, "pod1-1"))
    destinations = [(address, 53) for version in VERSIONS for address in (cluster_ip(DNS, version),)]
    destinations += [(str(address_of("public120", version)), 53) for version in VERSIONS]
    destinations += [(str(address_of("node1", version)), 30120) for version in VERSIONS]
    sockets = connect(cluster, opened, *(udp(*destination) for destination in destinations))
    assert ["pod1-1"] * len(sockets) == answers(sockets)

    cluster.put(*slices(DNS, "pod2-1"))

    wait_for_server(sockets, "pod2-1")


def test_udp_sockets_are_refused_after_the_last_endpoint(cluster: Cluster, opened: ExitStack) -> None:
    """After the last endpoint is removed, its flows are refused like new ones."""
    cluster.put(*slices(DNS, "pod1-1"))
    sockets = connect(cluster, opened, *(udp(cluster_ip(DNS, version), 53) for version in VERSIONS))

    cluster.put(*slices(DNS))

    wait_until(lambda: [REFUSED] * len(sockets) == [socket.ask() for socket in sockets], "refusals")


def test_udp_flows_from_before_the_service_reach_it(cluster: Cluster) -> None:
    """A flow that started before the Service existed reaches it once it exists."""
    client = cluster.lab.client_pod
    probes = [
        udp(cluster_ip(NEW, version), 53, source_port=SOURCE_PORT, timeout_seconds=SILENCE_SECONDS)
        for version in VERSIONS
    ]
    assert [Outcome(Verdict.TIMEOUT)] * len(probes) == client.probe(*probes)

    with cluster.having(NEW, *slices(NEW, "pod1-1")):
        wait_until(lambda: {"pod1-1"} == {outcome.server for outcome in client.probe(*probes)}, "the first endpoint")


def test_udp_flows_that_were_refused_reach_the_first_endpoint(cluster: Cluster) -> None:
    """A flow that was refused without endpoints reaches the first endpoint."""
    client = cluster.lab.client_pod
    probes = [udp(cluster_ip(DNS, version), 53, source_port=SOURCE_PORT) for version in VERSIONS]
    cluster.put(*slices(DNS))
    assert [REFUSED] * len(probes) == client.probe(*probes)

    cluster.put(*slices(DNS, "pod2-2"))

    wait_until(lambda: {"pod2-2"} == {outcome.server for outcome in client.probe(*probes)}, "the first endpoint")


@needs("nft_tables")
def test_udp_flows_from_a_time_without_rules_reach_it(cluster: Cluster) -> None:
    """A flow that started while the rules were deleted reaches the Service after the repair."""
    node = cluster.lab["node1"]
    cluster.put(*slices(DNS, "pod1-1"))
    node.run("nft", "-f", "-", stdin=TRACKING)
    client = cluster.lab.client_pod
    probes = [
        udp(cluster_ip(DNS, version), 53, source_port=SOURCE_PORT, timeout_seconds=SILENCE_SECONDS)
        for version in VERSIONS
    ]
    # The rules are programmed before the flows to earlier endpoints are deleted: the agent is stopped after both.
    wait_until(lambda: {"pod1-1"} == {outcome.server for outcome in client.probe(*probes)}, "the endpoint")
    cluster.agents["node1"].signal(SIGSTOP)
    try:
        for family in ("ipv4", "ipv6"):
            node.run("conntrack", "-D", "-f", family, "-p", "udp", "--sport", str(SOURCE_PORT))
        node.run("nft", "-f", "-", stdin="".join(f"delete table {table}\n" for table in cluster.mode.nft_tables))
        met = client.probe(*probes)
    finally:
        cluster.agents["node1"].signal(SIGCONT)

    assert {None} == {outcome.server for outcome in met}
    wait_until(lambda: {"pod1-1"} == {outcome.server for outcome in client.probe(*probes)}, "the endpoint")
    node.run("nft", "delete", "table", "inet", "admin")


def flow_ids(cluster: Cluster, item: JsonObject, sockets: list[Connection]) -> set[str]:
    """Return the kernel's ids of the flows of these sockets to a Service's cluster IPs on the first node."""
    listing = "".join(
        cluster.lab["node1"].run("conntrack", "-L", "-f", family, "-p", "udp", "-d", ip, "-o", "id")
        for family, ip in zip(("ipv4", "ipv6"), item["spec"]["clusterIPs"], strict=True)
    )
    ports = {f"sport={socket.greeting.client.port}" for socket in sockets if socket.greeting.client}
    flows = [line.split() for line in listing.splitlines()]
    return {word for words in flows if ports.intersection(words) for word in words if word.startswith("id=")}


def test_flows_of_other_endpoints_and_services_stay(cluster: Cluster, opened: ExitStack) -> None:
    """Only flows to the removed endpoint are deleted, not those to other endpoints or of other Services."""
    cluster.put(*slices(DNS, "pod1-1", "pod2-1"))
    sockets = connect(
        cluster, opened, *(udp(cluster_ip(DNS, version), 53) for version in VERSIONS for _ in range(SOCKETS))
    )
    bystanders = connect(cluster, opened, *(udp(cluster_ip(BYSTANDER, version), 53) for version in VERSIONS))
    before = answers(sockets)
    kept = [socket for socket, server in zip(sockets, before, strict=True) if server == "pod2-1"]
    flows = flow_ids(cluster, DNS, kept), flow_ids(cluster, BYSTANDER, bystanders)

    cluster.put(*slices(DNS, "pod2-1"))
    wait_for_server(sockets, "pod2-1")

    assert ["pod1-1"] * len(bystanders) == answers(bystanders)
    assert flows == (flow_ids(cluster, DNS, kept), flow_ids(cluster, BYSTANDER, bystanders))


def test_flows_to_a_draining_endpoint_stay(cluster: Cluster, opened: ExitStack) -> None:
    """A terminating endpoint that still serves keeps its flows; new flows go elsewhere."""
    cluster.put(*slices(DNS, "pod1-1"))
    sockets = connect(cluster, opened, *(udp(cluster_ip(DNS, version), 53) for version in VERSIONS))
    others = connect(cluster, opened, *(udp(cluster_ip(BYSTANDER, version), 53) for version in VERSIONS))
    before = flow_ids(cluster, DNS, sockets)

    cluster.put(*slices(DNS, terminating("pod1-1"), "pod2-1"), *slices(BYSTANDER, "pod2-1"))
    wait_for_server(others, "pod2-1")  # by then the stale flows of this change have been deleted
    newcomers = cluster.lab.client_pod.probe(*[udp(cluster_ip(DNS, version), 53) for version in VERSIONS] * SOCKETS)

    assert ["pod1-1"] * len(sockets) == answers(sockets)
    assert before == flow_ids(cluster, DNS, sockets)
    assert {"pod2-1"} == {outcome.server for outcome in newcomers}


def test_tcp_connections_survive_every_change(cluster: Cluster, opened: ExitStack) -> None:
    """A TCP connection survives the removal of its endpoint, changes of its Service, and restarts of the agent."""
    cluster.put(DNS, *slices(DNS, "pod1-1"))
    sockets = connect(cluster, opened, *(tcp(cluster_ip(DNS, version), 53) for version in VERSIONS))
    answered = {"at first": answers(sockets)}

    cluster.put(*slices(DNS, "pod2-1"))
    answered["endpoint replaced"] = answers(sockets)
    cluster.put(*slices(DNS))
    answered["no endpoints"] = answers(sockets)
    cluster.remove(DNS, *slices(DNS))
    answered["no Service"] = answers(sockets)
    cluster.stop()
    answered["agent stopped"] = answers(sockets)
    cluster.start(*cluster.flags)
    answered["agent back"] = answers(sockets)

    assert dict.fromkeys(answered, ["pod1-1"] * len(sockets)) == answered
