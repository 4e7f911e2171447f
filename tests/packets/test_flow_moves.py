"""UDP flows to an address that moves to another Service are redirected like new flows; other flows do not change."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from tests.lab import Host, Probe, sctp, tcp, udp
from tests.lab.waiting import wait_until

from .cluster import CLUSTER_CIDR_FLAG, Cluster
from .modes import needs
from .objects import PORT, VERSIONS, JsonObject, cluster_ips, ingress, port, public, service, slices
from .table import SILENCE_SECONDS, address_of
from .test_flags import SEGMENT_FLAG

NODE_PORT = 30053
LATER_IPS = ("172.18.0.78", "fd00:172:18::78")
"""Addresses in the nodes' segment that no host has at the start."""
FORWARDED_IPS = public(179)
"""Addresses that a foreign rule forwards."""
FORWARDING = f"""
table inet admin {{
    chain forward-port {{
        type nat hook prerouting priority dstnat - 5;
        ip daddr {FORWARDED_IPS[0]} udp dport {NODE_PORT} dnat ip to 10.244.1.11:{PORT}
        ip6 daddr {FORWARDED_IPS[1]} udp dport {NODE_PORT} dnat ip6 to [fd00:10:244:1::11]:{PORT}
    }}
}}
"""
_source_ports = itertools.count(20_000)
"""Each client socket gets its own source port, so that flows of one test do not affect the next."""


def udp_service(name: str, number: int, *, node_port: int = 0, number_of_port: int = 53, **spec: Any) -> JsonObject:  # noqa: ANN401  # any field
    """Return a Service with one UDP port; of type NodePort if a node port is given."""
    entry = port(number_of_port, "UDP", node_port=node_port)
    return service(name, number, entry, **({"type": "NodePort"} if node_port else {}) | spec)


def behind(item: JsonObject, *hosts: str) -> list[JsonObject]:
    """Return a Service and its EndpointSlices."""
    return [item, *slices(item, *hosts)]


def single_stack(item: JsonObject) -> JsonObject:
    """Return an IPv4-only copy of a Service."""
    spec = item["spec"]
    cluster = {"clusterIPs": spec["clusterIPs"][:1], "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack"}
    return item | {"spec": spec | cluster}


def moved_slices(owner: JsonObject, to: JsonObject, *hosts: str) -> list[JsonObject]:
    """Return slices of one Service with the label changed to another Service."""
    of_other = slices(to, *hosts)
    return [
        item | {"metadata": item["metadata"] | {"labels": other["metadata"]["labels"]}}
        for item, other in zip(slices(owner, *hosts), of_other, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class Scene:
    """A change, and the servers that flows to some addresses reach before and after it."""

    name: str
    before: list[JsonObject]
    after: list[JsonObject]
    meets: Sequence[tuple[str, int, str | None, str | None]]
    """Host or Service number, port, server before, server after; None for no server."""
    versions: Sequence[int] = VERSIONS

    def __str__(self) -> str:
        """Return the name, for test ids."""
        return self.name


A, B = udp_service("a", 170), udp_service("b", 171)
ON_A: dict[str, Any] = {"externalIPs": public(170)}
ON_B: dict[str, Any] = {"externalIPs": public(171)}


def _balanced(name: str, number: int, *ingress_numbers: int, **more: str) -> JsonObject:
    return service(name, number, port(53, "UDP"), type="LoadBalancer", ingress=ingress(*ingress_numbers, **more))


def _both(one: JsonObject, other: JsonObject) -> list[JsonObject]:
    return [*behind(one, "pod1-1"), *behind(other, "pod2-1")]


SCENES = [
    Scene("cluster IP gained", [], behind(A, "pod1-1"), [("cluster170", 53, None, "pod1-1")]),
    Scene(
        "external IP gained",
        behind(A, "pod1-1"),
        behind(udp_service("a", 170, **ON_A), "pod1-1"),
        [("cluster170", 53, "pod1-1", "pod1-1"), ("public170", 53, None, "pod1-1")],
    ),
    Scene(
        "load balancer IP gained",
        behind(_balanced("a", 170), "pod1-1"),
        behind(_balanced("a", 170, 170), "pod1-1"),
        [("public170", 53, None, "pod1-1")],
    ),
    Scene(
        "load balancer IP changes to mode VIP",
        behind(_balanced("a", 170, 170, ipMode="Proxy"), "pod1-1"),
        behind(_balanced("a", 170, 170, ipMode="VIP"), "pod1-1"),
        [("public170", 53, None, "pod1-1")],
    ),
    Scene(
        "node port gained",
        behind(A, "pod1-1"),
        behind(udp_service("a", 170, node_port=NODE_PORT), "pod1-1"),
        [("node1", NODE_PORT, None, "pod1-1")],
    ),
    Scene(
        "node port moved to another Service",
        _both(udp_service("a", 170, node_port=NODE_PORT), B),
        _both(A, udp_service("b", 171, node_port=NODE_PORT)),
        [("node1", NODE_PORT, "pod1-1", "pod2-1"), ("cluster170", 53, "pod1-1", "pod1-1")],
    ),
    Scene(
        "external IP moved to another Service",
        _both(udp_service("a", 170, **ON_A), B),
        _both(A, udp_service("b", 171, **ON_A)),
        [("public170", 53, "pod1-1", "pod2-1"), ("cluster171", 53, "pod2-1", "pod2-1")],
    ),
    Scene(
        "external IPs swapped",
        _both(udp_service("a", 170, **ON_A), udp_service("b", 171, **ON_B)),
        _both(udp_service("a", 170, **ON_B), udp_service("b", 171, **ON_A)),
        [("public170", 53, "pod1-1", "pod2-1"), ("public171", 53, "pod2-1", "pod1-1")],
    ),
    Scene(
        "load balancer IPs swapped",
        _both(_balanced("a", 170, 170), _balanced("b", 171, 171)),
        _both(_balanced("a", 170, 171), _balanced("b", 171, 170)),
        [("public170", 53, "pod1-1", "pod2-1"), ("public171", 53, "pod2-1", "pod1-1")],
    ),
    Scene(
        "node ports swapped",
        _both(udp_service("a", 170, node_port=NODE_PORT), udp_service("b", 171, node_port=NODE_PORT + 1)),
        _both(udp_service("a", 170, node_port=NODE_PORT + 1), udp_service("b", 171, node_port=NODE_PORT)),
        [("node1", NODE_PORT, "pod1-1", "pod2-1"), ("node1", NODE_PORT + 1, "pod2-1", "pod1-1")],
    ),
    Scene(
        "cluster IPs swapped",
        _both(udp_service("a", 170), udp_service("b", 171)),
        _both(udp_service("a", 171), udp_service("b", 170)),
        [("cluster170", 53, "pod1-1", "pod2-1"), ("cluster171", 53, "pod2-1", "pod1-1")],
    ),
    Scene(
        "recreated under another name",
        behind(udp_service("a", 170, node_port=NODE_PORT, **ON_A), "pod1-1"),
        behind(udp_service("c", 170, node_port=NODE_PORT, **ON_A), "pod2-1"),
        [(place, number, "pod1-1", "pod2-1") for place, number in (("cluster170", 53), ("public170", 53))]
        + [("node1", NODE_PORT, "pod1-1", "pod2-1")],
    ),
    Scene(
        "taken over from a conflicting Service",
        _both(udp_service("a", 170, **ON_A), udp_service("b", 171, **ON_A)),
        behind(udp_service("b", 171, **ON_A), "pod2-1"),
        [("public170", 53, "pod1-1", "pod2-1")],
    ),
    Scene(
        "slice moved to another Service",
        [*behind(A, "pod1-1"), B],
        [A, B, *moved_slices(A, B, "pod1-1"), *slices(A, "pod2-1", suffix="b")],
        [("cluster170", 53, "pod1-1", "pod2-1"), ("cluster171", 53, None, "pod1-1")],
    ),
    Scene(
        "second family gained",
        [single_stack(A), *slices(A, "pod1-1")],
        behind(A, "pod1-1"),
        [("cluster170", 53, None, "pod1-1")],
        versions=(6,),
    ),
    Scene(
        "external IP given up",
        behind(udp_service("a", 170, **ON_A), "pod1-1"),
        behind(A, "pod1-1"),
        [("public170", 53, "pod1-1", None), ("cluster170", 53, "pod1-1", "pod1-1")],
    ),
    Scene(
        "node port given up",
        behind(udp_service("a", 170, node_port=NODE_PORT), "pod1-1"),
        behind(A, "pod1-1"),
        [("node1", NODE_PORT, "pod1-1", None)],
    ),
    Scene(
        "Service removed",
        behind(udp_service("a", 170, node_port=NODE_PORT, **ON_A), "pod1-1"),
        [],
        [(place, number, "pod1-1", None) for place, number in (("cluster170", 53), ("public170", 53))]
        + [("node1", NODE_PORT, "pod1-1", None)],
    ),
]


def destination(place: str, version: int) -> str:
    """Return the address of a host, of a public number or of a Service number."""
    if place.startswith("cluster"):
        return cluster_ips(int(place.removeprefix("cluster")))[VERSIONS.index(version)]
    return str(address_of(place, version))


def silent(ip: str, number: int, source_port: int) -> Probe:
    """Return a UDP probe with a short time-out, because it may get no answer."""
    return udp(ip, number, source_port=source_port, timeout_seconds=SILENCE_SECONDS)


def servers(cluster: Cluster, host: str, probes: Sequence[Probe]) -> list[str | None]:
    """Send a datagram in each flow, and return the servers that answer."""
    return [outcome.server for outcome in cluster.lab[host].probe(*probes)]


@pytest.mark.parametrize("client", ["client-pod", "node1"])
@pytest.mark.parametrize("scene", SCENES, ids=str)
def test_flows_follow_their_address(cluster: Cluster, scene: Scene, client: str) -> None:
    """A client that keeps its source port reaches the new owner of the address, as a new client does."""
    probes, before, after = [], [], []
    for place, number, first, then in scene.meets:
        # IPVS matches a reply only by client address, client port and endpoint (ip_vs_conn_out_get). With one source
        # port for two addresses of a Service, all answers of an endpoint would go to the newer flow.
        source_port = next(_source_ports)
        for version in scene.versions:
            probes.append(silent(destination(place, version), number, source_port))
            before.append(first)
            after.append(then)
    with cluster.having(*scene.before):
        wait_until(lambda: before == servers(cluster, client, probes), f"answers of {before}")

        cluster.exchange(scene.before, scene.after)

        try:
            wait_until(lambda: after == servers(cluster, client, probes), f"answers of {after}")
        finally:
            cluster.remove(*scene.after)


def flow_ids(cluster: Cluster, source_port: int) -> set[str]:
    """Return the kernel's ids of the flows on the first node from a source port."""
    listing = "".join(
        cluster.lab["node1"].run("conntrack", "-L", "-f", family, "-p", "udp", f"--sport={source_port}", "-o", "id")
        for family in ("ipv4", "ipv6")
    )
    return {word for word in listing.split() if word.startswith("id=")}


@pytest.mark.parametrize("client", ["client-pod", "node1"])
def test_other_flows_to_the_number_of_a_node_port_stay(cluster: Cluster, client: str) -> None:
    """Flows to any address of another Service stay, although the port has the number of a node port."""
    number: dict[str, Any] = {"number_of_port": NODE_PORT}
    on_node: dict[str, Any] = {"externalIPs": [str(address_of("node1'", version)) for version in VERSIONS]}
    before = udp_service("a", 170, node_port=NODE_PORT)
    others = [
        *behind(udp_service("b", 171, **number, **ON_B), "pod2-1"),
        *behind(service("c", 172, port(NODE_PORT, "UDP"), type="LoadBalancer", ingress=ingress(172)), "pod2-1"),
        *behind(udp_service("d", 173, **number, **on_node), "pod2-1"),
    ]
    source_port, node_source_port = next(_source_ports), next(_source_ports)
    places = ("cluster171", "cluster172", "cluster173", "public171", "public172", "node1'")
    probes = [
        udp(destination(place, version), NODE_PORT, source_port=source_port) for place in places for version in VERSIONS
    ]
    to_node = [udp(destination("node1", version), NODE_PORT, source_port=node_source_port) for version in VERSIONS]
    with cluster.having(*others, *behind(before, "pod1-1")):
        wait_until(lambda: {"pod2-1"} == set(servers(cluster, client, probes)), "answers of pod2-1")
        wait_until(lambda: {"pod1-1"} == set(servers(cluster, client, to_node)), "answers of pod1-1")
        flows = flow_ids(cluster, source_port)

        cluster.put(*slices(before, "pod1-2"))

        wait_until(lambda: {"pod1-2"} == set(servers(cluster, client, to_node)), "answers of pod1-2")
        assert len(probes) == len(flows)
        assert flows == flow_ids(cluster, source_port)


def test_flows_that_another_agent_forwards_stay(cluster: Cluster) -> None:
    """A flow to the number of a node port stays if its address does not belong to the node and another agent forwards it."""
    node, item = cluster.lab["node1"], udp_service("a", 170, node_port=NODE_PORT)
    source_port, node_source_port = next(_source_ports), next(_source_ports)
    forwarded = [udp(ip, NODE_PORT, source_port=source_port) for ip in FORWARDED_IPS]
    to_node = [udp(destination("node1", version), NODE_PORT, source_port=node_source_port) for version in VERSIONS]
    node.run("nft", "-f", "-", stdin=FORWARDING)
    try:
        with cluster.having(*behind(item, "pod1-1")):
            wait_until(lambda: {"pod1-1"} == set(servers(cluster, "outside1", forwarded + to_node)), "pod1-1 only")
            flows = flow_ids(cluster, source_port)

            cluster.put(*slices(item, "pod1-2"))

            wait_until(lambda: {"pod1-2"} == set(servers(cluster, "outside1", to_node)), "answers of pod1-2")
            assert len(forwarded) == len(flows)
            assert flows == flow_ids(cluster, source_port)
    finally:
        node.run("nft", "delete", "table", "inet", "admin")


@pytest.fixture(params=[pytest.param("all", marks=needs("node_ports_on_every_address")), "ranges"])
def node_ports(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[None]:
    """Serve node ports on every address of a node, or only on those in the nodes' segment."""
    if request.param == "all":
        yield
        return
    with cluster.keeping_flags():
        cluster.restart(CLUSTER_CIDR_FLAG, SEGMENT_FLAG)
        yield


@pytest.mark.usefixtures("node_ports")
def test_flows_to_an_address_that_the_node_gets_and_loses(cluster: Cluster) -> None:
    """Flows that were unanswered reach a node port once its address is added, and get no answers after its removal."""
    node, item = cluster.lab["node1"], udp_service("a", 170, node_port=NODE_PORT)
    source_port = next(_source_ports)
    probes = [silent(ip, NODE_PORT, source_port) for ip in LATER_IPS]
    client = cluster.lab.client_pod
    with cluster.having(*behind(item, "pod1-1")):
        assert [None, None] == servers(cluster, client.name, probes)
        for ip in LATER_IPS:
            node.run("ip", "address", "add", ip, "dev", "eth0", *(["nodad"] if ":" in ip else []))
        try:
            wait_until(lambda: {"pod1-1"} == set(servers(cluster, client.name, probes)), "answers of pod1-1")
        finally:
            for ip in LATER_IPS:
                node.run("ip", "address", "delete", f"{ip}/{128 if ':' in ip else 32}", "dev", "eth0")

        wait_until(lambda: [None, None] == servers(cluster, client.name, probes), "no answers")


ZONED = """
table inet zones {
    chain zone { type filter hook prerouting priority raw; meta l4proto udp ct zone set 7; }
    chain own { type filter hook output priority raw; meta l4proto udp ct zone set 7; }
}
"""


@needs("moves_flows_in_zones")
@pytest.mark.parametrize("client", ["client-pod", "node1"])
def test_flows_in_a_zone_move(cluster: Cluster, client: str) -> None:
    """A flow in a separate conntrack zone moves like any other."""
    node, item = cluster.lab["node1"], udp_service("a", 170, node_port=NODE_PORT, **ON_A)
    source_port = next(_source_ports)
    places = (("cluster170", 53), ("public170", 53), ("node1", NODE_PORT))
    probes = [
        udp(destination(place, version), number, source_port=source_port)
        for place, number in places
        for version in VERSIONS
    ]
    node.run("nft", "-f", "-", stdin=ZONED)
    try:
        with cluster.having(*behind(item, "pod1-1")):
            wait_until(lambda: {"pod1-1"} == set(servers(cluster, client, probes)), "answers of pod1-1")
            assert "zone=7" in node.run("conntrack", "-L", "-p", "udp", f"--sport={source_port}")

            cluster.put(*slices(item, "pod1-2"))

            wait_until(lambda: {"pod1-2"} == set(servers(cluster, client, probes)), "answers of pod1-2")
    finally:
        node.run("nft", "delete", "table", "inet", "zones")


@contextmanager
def patient_about_sctp(node: Host) -> Iterator[None]:
    """Raise the conntrack time-out of SCTP associations that are not established; the default is 3 s."""
    names = "/proc/sys/net/netfilter/nf_conntrack_sctp_timeout_*"
    before = node.run("sh", "-c", f"grep . {names}").split()
    node.run("sh", "-c", f"for name in {names}; do echo 300 > $name; done")
    yield
    for name, _, seconds in (line.partition(":") for line in before):
        node.run("sh", "-c", f"echo {seconds} > {name}")


def test_flows_of_other_protocols_stay(cluster: Cluster) -> None:
    """TCP connections to an address that moves keep their endpoint, and no conntrack entry of SCTP is deleted."""
    ports = port(53, name="t"), port(54, "SCTP", name="s"), port(53, "UDP", name="u")
    with_ip, without = service("a", 170, *ports, **ON_A), service("a", 170, *ports)
    other, other_with_ip = service("b", 171, *ports), service("b", 171, *ports, **ON_A)
    moving = [udp(destination("public170", version), 53, source_port=next(_source_ports)) for version in VERSIONS]
    sctp_port = next(_source_ports)
    associations = [sctp(destination("public170", version), 54, source_port=sctp_port) for version in VERSIONS]

    def sctp_ids() -> list[str]:
        listing = "".join(
            cluster.lab["node1"].run("conntrack", "-L", "-f", name, "-p", "sctp", "-o", "id")
            for name in ("ipv4", "ipv6")
        )
        lines = [line.split() for line in listing.splitlines() if f"sport={sctp_port}" in line]
        return sorted(word for words in lines for word in words if word.startswith("id="))

    with ExitStack() as stack, cluster.having(*_both(with_ip, other)), patient_about_sctp(cluster.lab["node1"]):
        connections = [
            stack.enter_context(cluster.lab.client_pod.connect(tcp(destination("public170", version), 53)))
            for version in VERSIONS
        ]
        assert ["pod1-1"] * 2 == servers(cluster, "client-pod", associations)
        assert ["pod1-1"] * 2 == servers(cluster, "client-pod", moving)
        entries = sctp_ids()

        cluster.put(without, other_with_ip)

        wait_until(lambda: ["pod2-1"] * 2 == servers(cluster, "client-pod", moving), "answers of pod2-1")
        assert ["pod1-1"] * 2 == [connection.ask().server for connection in connections]
        assert (2, entries) == (len(entries), sctp_ids())
