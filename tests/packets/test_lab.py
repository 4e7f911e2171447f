"""The lab itself, without Services: the properties that other tests rely on."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import dropwhile
from pathlib import Path

import pytest

from tests.lab import (
    Host,
    IPAddress,
    Lab,
    LabError,
    Outcome,
    Ports,
    Probe,
    RefusedBy,
    Shape,
    SocketAddress,
    Verdict,
    probe_all,
    sctp,
    tcp,
    udp,
)
from tests.lab.association import INIT_ACK, Packet, crc32c, decode, encode

pytestmark = pytest.mark.usefixtures("needs_root")

PORT = 8080
CLOSED_PORT = 9
PROTOCOLS = [tcp, udp, sctp]
VERSIONS = [4, 6]
WAIT_SECONDS = 10
MOST_SECONDS = 10
"""Limit for creating a lab on a busy machine; an idle one takes a fifth of a second."""

# A handmade Service on one node: a cluster IP that leads to pod1-1, and addresses that refuse in different ways.
RULES = """
table inet lab {
    chain translate {
        meta l4proto { tcp, udp, sctp } ip daddr 10.96.0.10 dnat ip to 10.244.1.11
        meta l4proto { tcp, udp, sctp } ip6 daddr fd00:10:96::10 dnat ip6 to fd00:10:244:1::11
    }
    chain prerouting { type nat hook prerouting priority dstnat; goto translate; }
    chain output { type nat hook output priority -100; goto translate; }
    chain postrouting {
        type nat hook postrouting priority srcnat
        ip saddr 10.244.1.11 ip daddr 10.244.1.11 masquerade
        ip6 saddr fd00:10:244:1::11 ip6 daddr fd00:10:244:1::11 masquerade
    }
    chain forward {
        type filter hook forward priority filter
        ip daddr 10.96.0.11 reject
        ip6 daddr fd00:10:96::11 reject
        ip daddr 10.96.0.12 drop
        ip6 daddr fd00:10:96::12 drop
        ip daddr 10.96.0.13 reject with icmp type admin-prohibited
        ip6 daddr fd00:10:96::13 reject with icmpv6 type admin-prohibited
    }
    chain sent {
        type filter hook output priority filter
        ip daddr 10.96.0.11 reject
        ip6 daddr fd00:10:96::11 reject
        ip daddr 10.96.0.12 drop
        ip6 daddr fd00:10:96::12 drop
    }
}
"""
SERVICE = {4: "10.96.0.10", 6: "fd00:10:96::10"}
REJECTED = {4: "10.96.0.11", 6: "fd00:10:96::11"}
DROPPED = {4: "10.96.0.12", 6: "fd00:10:96::12"}
PROHIBITED = {4: "10.96.0.13", 6: "fd00:10:96::13"}

NOTIFY = """
import os, signal, socket
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.sendto(os.environ["WORD"].encode(), os.environ["NOTIFY_SOCKET"])
print(os.popen("ip -brief address show eth0").read(), flush=True)
signal.pause()
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Provide a lab whose pods all serve one port, and whose first node has the rules."""
    with Lab() as running:
        for pod in running.pods:
            pod.serve(tcp=[PORT], udp=[PORT], sctp=[PORT])
        running["node1"].run("nft", "-f", "-", stdin=RULES)
        yield running


def seen_address(lab: Lab, client: Host, pod: Host, version: int) -> IPAddress:
    """Return the source address of a host as a pod sees it: that of the pod bridge if the host is the pod's node."""
    for node in lab.plan.nodes:
        if node.name == client.name and pod in lab.pods_of(client):
            return next(address for address in node.gateways if address.version == version)
    return client.address(version)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_host_reaches_every_pod(lab: Lab, protocol: Callable[..., Probe], version: int) -> None:
    """Pods, nodes and external hosts reach each pod at its address, with their own source address."""
    flows = [(host, pod) for host in lab.hosts.values() for pod in lab.pods]

    outcomes = probe_all([(host, protocol(pod.address(version), PORT)) for host, pod in flows])

    expected = [
        (pod.name, SocketAddress(pod.address(version), PORT), seen_address(lab, host, pod, version))
        for host, pod in flows
    ]
    assert expected == [(outcome.server, outcome.reached, outcome.client_ip) for outcome in outcomes]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("protocol", "refused_by"), [(tcp, RefusedBy.RESET), (udp, RefusedBy.PORT_UNREACHABLE), (sctp, RefusedBy.RESET)]
)
def test_closed_port_is_refused(lab: Lab, protocol: Callable[..., Probe], refused_by: RefusedBy, version: int) -> None:
    """A closed port is refused as its protocol defines."""
    [outcome] = lab.client_pod.probe(protocol(lab["pod2-1"].address(version), CLOSED_PORT))

    assert (Verdict.REFUSED, refused_by) == (outcome.verdict, outcome.refused_by)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_verdicts_of_rules_are_distinguished(lab: Lab, protocol: Callable[..., Probe], version: int) -> None:
    """A client can distinguish REJECT, DROP and another ICMP error."""
    rejected, dropped, prohibited = lab.client_pod.probe(
        protocol(REJECTED[version], PORT), protocol(DROPPED[version], PORT), protocol(PROHIBITED[version], PORT)
    )

    assert (Verdict.REFUSED, RefusedBy.PORT_UNREACHABLE) == (rejected.verdict, rejected.refused_by)
    assert Outcome(Verdict.TIMEOUT) == dropped
    assert Verdict.UNREACHABLE == prohibited.verdict
    assert prohibited.error in {"EHOSTUNREACH", "EACCES"}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_verdicts_of_own_rules_are_not_confused(lab: Lab, protocol: Callable[..., Probe], version: int) -> None:
    """A packet that the client's host drops counts as a time-out, even if the host rejects another one at the same time."""
    outcomes = lab["node1"].probe(*[protocol(REJECTED[version], PORT), protocol(DROPPED[version], PORT)] * 20)

    assert [Verdict.REFUSED, Verdict.TIMEOUT] * 20 == [outcome.verdict for outcome in outcomes]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_no_refusal_is_lost_in_a_burst(lab: Lab, protocol: Callable[..., Probe], version: int) -> None:
    """Two hundred concurrent rejected probes yield two hundred refusals: the kernel's ICMP rate limit is off."""
    outcomes = lab.client_pod.probe(*[protocol(REJECTED[version], PORT)] * 200)

    assert {Verdict.REFUSED} == {outcome.verdict for outcome in outcomes}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("client", ["client-pod", "pod1-2", "node1", "outside1"])
def test_translation_works_in_both_directions(
    lab: Lab, client: str, protocol: Callable[..., Probe], version: int
) -> None:
    """A translated address reaches the pod, also from another pod of the same node."""
    [outcome] = lab[client].probe(protocol(SERVICE[version], PORT))

    assert ("pod1-1", SocketAddress(lab["pod1-1"].address(version), PORT)) == (outcome.server, outcome.reached)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_pod_reaches_itself_through_a_service(lab: Lab, protocol: Callable[..., Probe], version: int) -> None:
    """A pod that reaches itself through a Service gets an answer, and sees the node as the client."""
    [outcome] = lab["pod1-1"].probe(protocol(SERVICE[version], PORT))

    assert ("pod1-1", lab.plan.nodes[0].gateways[VERSIONS.index(version)]) == (outcome.server, outcome.client_ip)


def test_outside_clients_enter_by_their_own_node(lab: Lab) -> None:
    """The second external client goes through the second node, which has no rules, and gets no answer."""
    assert Outcome(Verdict.TIMEOUT) == lab["outside2"].probe(tcp(SERVICE[4], PORT))[0]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_source_address_and_port_can_be_chosen(lab: Lab, protocol: Callable[..., Probe], version: int) -> None:
    """A probe can be repeated from a fixed source address and port."""
    source = lab["outside1"].second_address(version)
    probe = protocol(lab["pod1-1"].address(version), PORT, source=source, source_port=15000)

    outcomes = [lab["outside1"].probe(probe)[0] for _ in range(3)]

    assert [SocketAddress(source, 15000)] * 3 == [outcome.client for outcome in outcomes]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("protocol", [tcp, udp])
def test_nodes_answer_from_the_address_they_were_asked_at(
    lab: Lab, protocol: Callable[..., Probe], version: int
) -> None:
    """A server on a host with two addresses answers from the address that was used."""
    node = lab["node2"]
    node.serve(tcp=[PORT], udp=[PORT])

    outcomes = lab.database.probe(protocol(node.address(version), PORT), protocol(node.second_address(version), PORT))

    assert [SocketAddress(node.address(version), PORT), SocketAddress(node.second_address(version), PORT)] == [
        outcome.reached for outcome in outcomes
    ]


def test_no_two_sockets_share_a_source_port(lab: Lab) -> None:
    """UDP sockets without a fixed source port get different ports, so that each receives its answers."""
    probe = udp(lab["pod2-1"].ipv4, PORT)
    with ExitStack() as opened:
        # If ports could be shared, the probability that all of these differ would be 0.0001.
        sockets = [opened.enter_context(lab.client_pod.connect(probe)) for _ in range(700)]

        assert len(sockets) == len({socket.greeting.client for socket in sockets})


@pytest.mark.parametrize("protocol", [tcp, udp])
def test_connection_keeps_its_socket(lab: Lab, protocol: Callable[..., Probe]) -> None:
    """Every question of a connection has the same source port."""
    with lab.client_pod.connect(protocol(lab["pod2-1"].ipv4, PORT)) as connection:
        outcomes = [connection.greeting, connection.ask(), connection.ask()]

    assert 1 == len({outcome.identity for outcome in outcomes})


@pytest.mark.parametrize(("keeps", "verdict"), [(True, Verdict.REPLY), (False, Verdict.REFUSED)])
def test_connections_end_with_their_server_unless_it_drains(lab: Lab, keeps: bool, verdict: Verdict) -> None:  # noqa: FBT001
    """A port that is closed refuses new connections; open connections survive only if the server drains."""
    pod = lab["pod2-2"]
    pod.serve(tcp=[8081])
    with lab.client_pod.connect(tcp(pod.ipv4, 8081)) as connection:
        pod.stop_serving(Ports(tcp=(8081,)), keep_connections=keeps)
        [newcomer] = lab.client_pod.probe(tcp(pod.ipv4, 8081))

        assert (verdict, Verdict.REFUSED) == (connection.ask().verdict, newcomer.verdict)


def test_connection_without_an_answer_raises(lab: Lab) -> None:
    """Connecting to an address without an answer raises an error."""
    with pytest.raises(LabError, match="refused"):
        lab.client_pod.connect(tcp(lab["pod2-1"].ipv4, CLOSED_PORT))


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until the condition holds."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline


def test_load_reports_every_request(lab: Lab) -> None:
    """A load counts answers by server, and reports when and how requests failed."""
    pod = lab["pod2-2"]
    pod.serve(udp=[8082])
    with lab.client_pod.load(udp(pod.ipv4, 8082), per_second=200) as load:
        wait_for(lambda: load.report().requests >= 10)
        assert () == load.report().failures
        pod.stop_serving(Ports(udp=(8082,)))
        wait_for(lambda: len(load.report().failures) >= 5)

    report = load.report()
    assert report.requests == report.replies["pod2-2"] + len(report.failures)
    # Datagrams in the socket's queue are lost when the server closes it; later ones are refused.
    in_order = sorted(report.failures, key=lambda failure: failure.at_seconds)
    later = [*dropwhile(lambda failure: failure.outcome.verdict is Verdict.TIMEOUT, in_order)]
    assert {RefusedBy.PORT_UNREACHABLE} == {failure.outcome.refused_by for failure in later}


def test_held_connection_reports_its_requests_and_its_end(lab: Lab) -> None:
    """A held connection counts the answers of its server, and reports when the server closes it."""
    pod = lab["pod2-2"]
    pod.serve(tcp=[8083])
    with lab.client_pod.hold(tcp(pod.ipv4, 8083), per_second=200) as held:
        wait_for(lambda: held.report().requests >= 10)
        assert () == held.report().failures
        pod.stop_serving(Ports(tcp=(8083,)))
        wait_for(lambda: held.report().failures != ())

    report = held.report()
    assert {"pod2-2": report.requests} == report.replies
    assert [Verdict.REFUSED] == [failure.outcome.verdict for failure in report.failures]


def test_program_runs_in_its_namespace_and_reports_readiness(lab: Lab) -> None:
    """A program sees the devices of its host, notifies the lab of its readiness, and ends on SIGTERM."""
    process = lab["node1"].start(sys.executable, "-c", NOTIFY, env={"WORD": "READY=1"})
    process.wait_until_ready()
    wait_for(lambda: "172.18.0.11" in process.stdout)

    assert process.is_running
    assert -signal.SIGTERM == process.stop()


def test_program_that_ends_early_is_reported_with_its_output(lab: Lab) -> None:
    """Waiting for a program that has failed raises immediately, with its output."""
    process = lab["node1"].start("sh", "-c", "echo cannot start >&2; exit 3")

    with pytest.raises(LabError, match=r"(?s)exit status 3.*cannot start"):
        process.wait_until_ready()


def namespaces_of(prefix: str) -> list[str]:
    """Return the names of the existing namespaces with this prefix."""
    return [path.name for path in Path("/run/netns").glob(f"{prefix}*")]


def processes_in(names: list[str]) -> set[int]:
    """Return the pids of all processes in the namespaces."""
    listings = [subprocess.run(["ip", "netns", "pids", name], capture_output=True, check=True) for name in names]
    return {int(pid) for listing in listings for pid in listing.stdout.split()}


def is_running(pid: int) -> bool:
    """Return whether the process exists and is not a zombie, which only its parent can remove."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(") ")[2][0] != "Z"


def state_of_this_namespace() -> dict[str, str]:
    """Return the links, addresses, rules and settings of the namespace in which the tests run."""
    commands = (
        "ip -json address",
        "ip -json route show table all",
        "ip -json -6 route show table all",
        "nft list ruleset",
    )
    state = {command: subprocess.check_output(command.split(), text=True) for command in commands}
    for name in ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", "net/ipv4/conf/all/rp_filter"):
        state[name] = (Path("/proc/sys") / name).read_text()
    return state


def test_nothing_is_left_even_after_a_failure() -> None:
    """After an exception in a lab, no namespace or process remains, and the caller's namespace has not changed."""
    before = state_of_this_namespace()
    names: list[str] = []
    pids: set[int] = set()

    with pytest.raises(ZeroDivisionError):
        _fail_in_a_lab(names, pids)

    # The switch, a node, two pods, an external client and the database have a worker each; one more program runs.
    assert (6, 7) == (len(names), len(pids))
    assert [] == [name for name in names if Path("/run/netns", name).exists()]
    assert [] == [pid for pid in pids if is_running(pid)]
    assert before == state_of_this_namespace()


def _fail_in_a_lab(names: list[str], pids: set[int]) -> None:
    """Record the namespaces and processes of a lab, then fail."""
    with Lab(Shape(nodes=1, pods_per_node=1)) as lab:
        program = lab["node1"].start("sleep", "1000")
        lab.pods[0].serve(tcp=[PORT])
        names += namespaces_of(lab["node1"].namespace.name.removesuffix("node1"))
        wait_for(lambda: program.pid in processes_in(names))  # nsenter starts it, and may not have entered yet
        pids |= processes_in(names)
        raise ZeroDivisionError


KILLED = """
import os, signal
from tests.lab import Lab, Shape
with Lab(Shape(nodes=1, pods_per_node=0)) as lab:
    lab["node1"].start("sleep", "1000")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_next_run_cleans_up_after_a_killed_run() -> None:
    """The next lab removes the namespaces, programs and files of a killed run."""
    killed = subprocess.Popen([sys.executable, "-c", KILLED], cwd=Path(__file__).parents[2])
    killed.wait(WAIT_SECONDS)
    debris = namespaces_of(f"pyp-{killed.pid}-")
    pids = processes_in(debris)

    with Lab(Shape(nodes=1, pods_per_node=0, ipv6=False)):
        assert [] == namespaces_of(f"pyp-{killed.pid}-")

    assert debris
    assert pids
    wait_for(lambda: not any(map(is_running, pids)))


@pytest.mark.parametrize(
    "shape",
    [Shape(nodes=1, pods_per_node=1, ipv6=False), Shape(nodes=1, pods_per_node=1, ipv4=False), Shape(), Shape(4, 5)],
    ids=["ipv4", "ipv6", "default", "large"],
)
def test_lab_is_created_quickly(shape: Shape, record_property: Callable[[str, object], None]) -> None:
    """A lab of any shape is created within the limit, and its last pod answers a client in each family."""
    started = time.monotonic()
    with Lab(shape) as lab:
        seconds = time.monotonic() - started
        print(f"{shape}: up in {seconds:.3f} s")
        record_property("bring_up_seconds", seconds)
        pod = lab.pods[-1]
        pod.serve(tcp=[PORT])

        outcomes = lab.outside[0].probe(*(tcp(address, PORT) for address in pod.addresses))

    assert [pod.name] * len(shape.versions) == [outcome.server for outcome in outcomes]
    assert seconds < MOST_SECONDS


def test_two_labs_side_by_side_agree(lab: Lab) -> None:
    """The same packets have the same results in two concurrent labs with equal rules."""
    with Lab() as other:
        for pod in other.pods:
            pod.serve(tcp=[PORT], udp=[PORT], sctp=[PORT])
        other["node1"].run("nft", "-f", "-", stdin=RULES)
        addresses = [*SERVICE.values(), *REJECTED.values(), *PROHIBITED.values(), *lab["pod2-1"].addresses]
        flows = [(name, protocol(to, PORT)) for name in lab.hosts for to in addresses for protocol in PROTOCOLS]

        outcomes = probe_all([(each[name], probe) for each in (lab, other) for name, probe in flows])

    compared = [outcome.without_client_port() for outcome in outcomes]
    assert compared[: len(flows)] == compared[len(flows) :]


def test_checksum_is_the_one_of_sctp() -> None:
    """The CRC32c of the nine digits has the well-known value."""
    assert 0xE3069283 == crc32c(b"123456789")


def test_packet_survives_encoding_unless_damaged() -> None:
    """An encoded packet can be decoded; with one wrong bit it is rejected."""
    packet = Packet(1, 2, 3, INIT_ACK, 4, b"cookie")
    data = encode(packet)

    assert packet == decode(data)
    assert decode(data[:-1] + bytes([data[-1] ^ 1])) is None
