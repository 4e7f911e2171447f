"""Intended differences: each test shows the behaviour of kube-proxy and of pyproxy for a row of docs/differences.md.

A test that fails because both behave the same means that its row is outdated.
"""

import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from ipaddress import IPv6Network, ip_network

import pytest

from tests.lab import Connection, Host, Outcome, Verdict, tcp, udp
from tests.lab.waiting import wait_until

from .controlplane import SERVICE_CIDRS, ControlPlane
from .namespace import command_inside
from .peer.modes import MODES, NFTABLES
from .peer.objects import Entry, JsonObject, State, entry, port, service
from .peer.pair import Pair
from .peer.sides import PYPROXY, Side
from .peer.world import CLUSTER_CIDR_FLAG, PORT, VERSIONS, public
from .process import binary

PATIENCE_SECONDS = 20.0
SILENCE_SECONDS = 0.3
SOURCE_PORT = 12345
NODE_PORT = 30530
CHANCES = 8
READ_ONLY = 'mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys && exec "$@"'
FORWARDED_PORT = 7777
FORWARDING = """
table ip another-agent {{
    chain prerouting {{
        type nat hook prerouting priority dstnat - 10
        ip daddr {node} tcp dport {port} dnat to {pod}:{to}
    }}
}}
"""
SERVICE_CIDRS_PATH = "/apis/networking.k8s.io/v1/servicecidrs"
LATER_CIDR = IPv6Network("fd00:10:97::/112")
NO_ROUTE = "unreachable (ENETUNREACH)"
FREE_CLUSTER_IPS = [str(ip_network(cidr).network_address + 64001) for cidr in SERVICE_CIDRS]


@pytest.fixture(scope="module", params=MODES, ids=str)
def pair(control_plane: ControlPlane, request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Provide two labs with proxies in one mode."""
    with Pair(control_plane, request.param, [CLUSTER_CIDR_FLAG]) as started:
        yield started


def ask(connections: list[Connection]) -> list[str]:
    """Send a question through each connection; return the servers, or the failures."""
    return [outcome.server or outcome.verdict.value for outcome in (connection.ask() for connection in connections)]


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Wait for an effect other than rules."""
    wait_until(condition, what, timeout_seconds=PATIENCE_SECONDS)


def test_udp_flows_after_the_last_endpoint(pair: Pair) -> None:
    """After the last endpoint is removed, both end flows to cluster IPs; only pyproxy ends those to node ports."""
    dns = entry(service("dns", port(53, "UDP", node_port=NODE_PORT), type="NodePort"), "pod1-1")
    [(_, made)] = pair.replace_objects(State((dns,)))
    with ExitStack() as opened:

        def open_all(host: Host, ips: Iterable[object], number: int) -> list[Connection]:
            return [opened.enter_context(host.connect(udp(str(ip), number))) for ip in ips]

        to_cluster_ips = [open_all(side.lab.client_pod, made["spec"]["clusterIPs"], 53) for side in pair.sides]
        to_node_ports = [
            open_all(side.lab["outside1"], map(side.lab["node1"].address, VERSIONS), NODE_PORT) for side in pair.sides
        ]
        pair.remove_slices(dns)
        for _ in range(2):  # after the second marker, the work after the sync of the first one is complete
            pair.catch_up()

        for connections in (*to_cluster_ips, to_node_ports[1]):
            wait_for(lambda each=connections: ["refused"] * 2 == ask(each), "refusals")  # type: ignore[misc]
        assert ["pod1-1"] * 2 == ask(to_node_ports[0])


def test_udp_flows_from_before_a_service_that_has_endpoints(pair: Pair) -> None:
    """If a Service is created after its endpoints, kube-proxy in iptables mode keeps earlier flows, without an answer."""
    late = entry(service("late", port(53, "UDP"), clusterIP=FREE_CLUSTER_IPS[0], clusterIPs=FREE_CLUSTER_IPS), "pod1-1")
    pair.replace_objects(State(()))
    pair.add_slices(late)
    pair.catch_up()

    def outcomes(side: Side) -> list[Outcome]:
        probes = [udp(ip, 53, source_port=SOURCE_PORT, timeout_seconds=SILENCE_SECONDS) for ip in FREE_CLUSTER_IPS]
        return side.lab.client_pod.probe(*probes)

    assert [] == [outcome for side in pair.sides for outcome in outcomes(side) if outcome.verdict is Verdict.REPLY]
    pair.add_service(late.service)
    for _ in range(2):
        pair.catch_up()

    wait_for(lambda: ["pod1-1"] * 2 == [outcome.server for outcome in outcomes(pair.pyproxy)], "answers with pyproxy")
    # In nftables mode kube-proxy drops packets to addresses without a Service, so that there is no flow.
    expected = "pod1-1" if pair.mode is NFTABLES else None
    assert [expected] * 2 == [outcome.server for outcome in outcomes(pair.kube_proxy)]


def test_address_that_two_services_list(pair: Pair) -> None:
    """If two Services list one external IP, kube-proxy's choice is random; pyproxy uses the older one on every node."""
    older = entry(service("z-older", port(80), externalIPs=public(110)), "pod1-1")
    younger = entry(service("a-younger", port(80), externalIPs=public(110)), "pod1-2")
    [(_, made)] = pair.replace_objects(State((older,)))
    _add_when_younger(pair, made, younger)

    found = _servers(pair, *public(110))
    assert {"pod1-1"} == found[1]
    assert {"pod1-1", "pod1-2"} >= found[0]


def test_cluster_ip_that_another_service_lists(pair: Pair) -> None:
    """If a Service lists another's cluster IP as external IP, kube-proxy's choice is random; pyproxy's is not."""
    thief = entry(service("a-thief", port(80), externalIPs=FREE_CLUSTER_IPS), "pod1-2")
    owner = service("z-owner", port(80), clusterIP=FREE_CLUSTER_IPS[0], clusterIPs=FREE_CLUSTER_IPS)
    pair.replace_objects(State((thief, entry(owner, "pod1-1"))))

    found = _servers(pair, *FREE_CLUSTER_IPS)
    assert {"pod1-1"} == found[1]
    assert {"pod1-1", "pod1-2"} >= found[0]


def test_service_cidr_that_comes_later(pair: Pair, control_plane: ControlPlane) -> None:
    """In nftables mode pyproxy applies a new ServiceCIDR immediately, kube-proxy only after a full sync."""
    pair.replace_objects(State(()))
    body = {"metadata": {"name": "later"}, "spec": {"cidrs": [str(LATER_CIDR)]}}
    control_plane.request("POST", SERVICE_CIDRS_PATH, body)
    with ExitStack() as stack:
        stack.callback(control_plane.request, "DELETE", f"{SERVICE_CIDRS_PATH}/later")
        dropped = "timeout" if pair.mode is NFTABLES else NO_ROUTE
        wait_for(lambda: dropped == _fate_in_the_later_range(pair.pyproxy), "the range to act with pyproxy")
        pair.catch_up()
        assert NO_ROUTE == _fate_in_the_later_range(pair.kube_proxy)

        pair.replace_objects(State((), {"node1": "b", "node2": "a"}))  # a changed zone causes a full sync
        wait_for(lambda: dropped == _fate_in_the_later_range(pair.kube_proxy), "the range to act with kube-proxy")


def _fate_in_the_later_range(side: Side) -> str:
    """Return the result of a node's packet to a free address; the lab's router has no route to it, and sends an error."""
    [outcome] = side.lab["node1"].probe(tcp(LATER_CIDR[77], 80, timeout_seconds=SILENCE_SECONDS))
    return str(outcome)


def test_hairpin_through_a_port_of_another_agent(pair: Pair) -> None:
    """A pod reaches itself through a port that another agent forwards only with pyproxy's iptables mode."""
    pair.replace_objects(State(()))
    found = []
    for side in pair.sides:
        pod, node = side.lab["pod1-1"], side.lab["node1"]
        node.run(
            "nft", "--file", "-", stdin=FORWARDING.format(node=node.ipv4, port=FORWARDED_PORT, pod=pod.ipv4, to=PORT)
        )
        found += pod.probe(tcp(node.ipv4, FORWARDED_PORT, timeout_seconds=SILENCE_SECONDS))

    expected = None if pair.mode is NFTABLES else "pod1-1"
    assert [None, expected] == [outcome.server for outcome in found]


_TIMED_OUT = 124
"""The exit status of timeout(1)."""
RUNS = {
    "kube-proxy": (["kube-proxy", "--init-only"], 1, "read-only"),
    "pyproxy --init-only": ([PYPROXY, "run", "--init-only"], 1, "some kernel settings could not be written"),
    "pyproxy": (["timeout", "10", PYPROXY, "run", "--control-socket="], _TIMED_OUT, "first sync done"),
}
"""Command, expected exit status, and a part of the log."""


@pytest.mark.parametrize(("words", "status", "part"), RUNS.values(), ids=RUNS.keys())
def test_kernel_settings_that_cannot_be_written(
    control_plane: ControlPlane, namespace: str, words: list[str], status: int, part: str
) -> None:
    """With a read-only /proc/sys, as in unprivileged containers, kube-proxy exits and pyproxy works, unless --init-only is set."""
    words = [binary(word) if word == "kube-proxy" else word for word in words]
    control_plane.create_node("alone", ["192.0.2.11"])
    with ExitStack() as stack:
        stack.callback(control_plane.request, "DELETE", "/api/v1/nodes/alone")
        server = stack.enter_context(control_plane.exposed_in(namespace))
        kubeconfig = control_plane.kubeconfig_for({"token": control_plane.static_token()}, server)
        flags = [f"--kubeconfig={kubeconfig}", "--hostname-override=alone", "--conntrack-max-per-core=0"]
        ended = subprocess.run(
            command_inside(namespace, ["unshare", "--mount", "sh", "-c", READ_ONLY, "sh", *words, *flags]),
            capture_output=True,
            text=True,
            check=False,
        )

    assert status == ended.returncode, ended.stderr
    assert "read-only" in ended.stderr.lower()
    assert part in ended.stderr


def _servers(pair: Pair, *ips: str) -> list[set[str | None]]:
    """Return the servers on port 80 of addresses, from both nodes of both sides."""
    probes = [tcp(ip, 80) for ip in ips] * CHANCES
    sources = [[side.lab.client_pod, side.lab["pod2-3"]] for side in pair.sides]
    return [{outcome.server for source in both for outcome in source.probe(*probes)} for both in sources]


def _add_when_younger(pair: Pair, older: JsonObject, younger: Entry) -> None:
    """Create a Service repeatedly until its creation time, in whole seconds, is later than that of another."""
    age = older["metadata"]["creationTimestamp"]

    def is_younger() -> bool:
        if pair.add(younger)["metadata"]["creationTimestamp"] > age:
            return True
        pair.remove_slices(younger)
        pair.remove_service(younger.name)
        return False

    wait_for(is_younger, "the next second of the API server")
    pair.catch_up()
