"""pyproxy's IPVS mode beside that of the real kube-proxy, where the kernel has IPVS: `python -m tests.guest` brings one.

pyproxy follows the iptables mode where kube-proxy's IPVS mode does not (docs/differences.md). Packets that meet one of
those rows are left out of the comparison, and have tests of their own: one that fails because both do the same means
that a row is no longer true.
"""

from collections.abc import Container, Iterator, Sequence

import pytest

from tests.lab import Connection, Outcome, Verdict, tcp, udp

from .controlplane import ControlPlane
from .peer.answers import divergences
from .peer.generated import state as generated_state
from .peer.handmade import FOR_IPVS, STATES, together
from .peer.modes import IPVS
from .peer.objects import Entry, JsonObject, State, entry, port, service
from .peer.packets import Packet, core_and_further, destinations
from .peer.pair import Pair
from .peer.sides import Side
from .peer.world import CLUSTER_CIDR_FLAG, NODE_OF, PORT, SECOND_ADDRESSES

pytestmark = pytest.mark.needs_ipvs

FURTHER_PACKETS = 100
GENERATED = 10
FOREIGN = "198.51.100.7:80"
WEB = service("web", port(80))
"""For what happens when it goes."""

Told = Sequence[tuple[Entry, JsonObject]]


@pytest.fixture(scope="module")
def pair(control_plane: ControlPlane) -> Iterator[Pair]:
    """Give two labs with proxies in IPVS mode."""
    with Pair(control_plane, IPVS, [CLUSTER_CIDR_FLAG]) as started:
        yield started


@pytest.fixture(scope="module")
def told(pair: Pair) -> Told:
    """Tell both of a little of everything."""
    return pair.tell(FOR_IPVS)


def test_packets_meet_the_same(pair: Pair, told: Told) -> None:
    """Whatever a Service can be or have, packets from everywhere meet the same, but for what is wanted otherwise."""
    assert "" == _unwanted(pair, told)


def _unwanted(pair: Pair, told: Told) -> str:
    entries = {item.name: item for item, _ in told}
    listed = {ip for item, _ in told for ip in item.service["spec"].get("externalIPs", ())}
    found = core_and_further(destinations(told), FURTHER_PACKETS)
    compared = [
        packet
        for packet in found
        if not _is_otherwise(packet, entries[packet.destination.service])
        and not _goes_to_a_contested_address(packet, listed)
    ]
    assert len(compared) > len(found) / 2
    return "\n".join(divergences(pair, told, compared))


def _goes_to_a_contested_address(packet: Packet, listed: Container[str]) -> bool:
    """Say whether a packet is for or from an address of a node that a Service lists: with kube-proxy each node claims it."""
    ips = {packet.destination.to.ip, *packet.source.bound}
    return any(str(ip) in listed for node in ("node1", "node2") for ip in ips.intersection(SECOND_ADDRESSES[node]))


def _is_otherwise(packet: Packet, item: Entry) -> bool:
    """Say whether a packet meets a row of docs/differences.md about its Service."""
    spec = item.service["spec"]
    to = packet.destination
    if not to.is_served:
        # kube-proxy's node has the address, and refuses; pyproxy's has not, and passes the packet on.
        return any(where in to.what for where in ("external IP, another port", "at external IP"))
    if to.what == "cluster IP":
        node = NODE_OF.get(packet.source.host, "node1")
        return "internalTrafficPolicy" in spec and node not in _nodes(item)
    return "externalTrafficPolicy" in spec and packet.source.host in NODE_OF


def _nodes(item: Entry) -> set[str | None]:
    """Return the nodes that have an endpoint that is ready."""
    return {
        endpoint.get("nodeName")
        for each in item.slices
        for endpoint in each["endpoints"]
        if endpoint["conditions"].get("ready", True)
    }


def test_node_and_external_policy_local(pair: Pair, told: Told) -> None:
    """A node without a local endpoint sends its own packets to other nodes with an address that gets no answer."""
    [ip] = _external_ips(told, "local")
    met = [_met(side, "node2", ip) for side in pair.sides]

    assert [Verdict.TIMEOUT, Verdict.REPLY] == [outcome.verdict for outcome in met]
    assert "pod1-1" == met[1].server


def test_internal_policy_local_without_a_local_endpoint(pair: Pair, told: Told) -> None:
    """Packets go to endpoints of other nodes, or are refused, where they have to be dropped."""
    elsewhere, nowhere = (_cluster_ip(told, name) for name in ("internal-local", "internal-nowhere"))
    probes = udp(elsewhere, 80), tcp(nowhere, 80)
    kube_proxy, pyproxy = (side.lab["node2"].probe(*probes) for side in pair.sides)

    assert [Verdict.REPLY, Verdict.REFUSED] == [outcome.verdict for outcome in kube_proxy]
    assert [Verdict.TIMEOUT] * 2 == [outcome.verdict for outcome in pyproxy]


def test_addresses_are_bound(pair: Pair, told: Told) -> None:
    """kube-proxy binds addresses to its device, and pyproxy has routes over it."""
    ip = _cluster_ip(told, "cluster")
    listings = [side.lab["node1"].run("ip", "address", "show", "dev", "kube-ipvs0") for side in pair.sides]

    assert [True, False] == [f"inet {ip}/32" in listing for listing in listings]


def test_external_ip_of_another_node(pair: Pair, told: Told) -> None:
    """Where a Service lists an address of node1, kube-proxy takes all of it on node2, and pyproxy the Service's port."""
    [address] = {entry.service["spec"]["externalIPs"][0] for entry, _ in told if entry.name == "address-of-a-node"}
    kube_proxy, pyproxy = (side.lab["node2"].probe(tcp(address, PORT), tcp(address, 80)) for side in pair.sides)

    assert ["refused", "reply"] == [outcome.verdict.value for outcome in kube_proxy]
    assert ["node1", "pod2-1"] == [outcome.server for outcome in pyproxy]


def test_virtual_servers_of_others(pair: Pair, told: Told) -> None:  # noqa: ARG001 - nodes that have something
    """kube-proxy deletes a virtual server that somebody else made, at its next sync."""
    for side in pair.sides:
        side.lab["node1"].run("ipvsadm", "-A", "-t", FOREIGN, "-s", "wlc")
    pair.catch_up()

    assert [False, True] == [FOREIGN in side.lab["node1"].run("ipvsadm", "-Ln") for side in pair.sides]


def test_connections_of_a_service_that_goes(pair: Pair) -> None:
    """With kube-proxy they end, and with pyproxy they go on."""
    [(_, made)] = pair.tell(State((web := entry(WEB, "pod1-1"),)))
    ip = made["spec"]["clusterIP"]
    connections = [side.lab.client_pod.connect(tcp(ip, 80)) for side in pair.sides]
    pair.remove_slices(web)
    pair.remove_service(web.name)
    pair.catch_up()

    assert [None, "pod1-1"] == [_ask(connection) for connection in connections]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give further states where there is time: a sync of kube-proxy takes a minute or more with some of them."""
    if "state" in metafunc.fixturenames:
        seed = metafunc.config.getoption("hypothesis_seed") or "0"
        states = {"everything": together(STATES)}
        states |= {f"generated-{number}": generated_state(seed, number) for number in range(GENERATED)}
        chosen = states if metafunc.config.getoption("--long") else {}
        metafunc.parametrize("state", chosen.values(), ids=chosen.keys())


def test_packets_in_other_states_meet_the_same(pair: Pair, state: State) -> None:
    """Whatever comes together in Services, slices and Nodes, packets meet the same."""
    assert "" == _unwanted(pair, pair.tell(state))


def _ask(connection: Connection) -> str | None:
    with connection:
        return connection.ask().server


def _met(side: Side, source: str, ip: str) -> Outcome:
    [outcome] = side.lab[source].probe(tcp(ip, 80))
    return outcome


def _cluster_ip(told: Told, name: str) -> str:
    return str(_made(told, name)["spec"]["clusterIPs"][0])


def _external_ips(told: Told, name: str) -> list[str]:
    """Return the load balancer's IPv4 addresses of a Service."""
    return [item["ip"] for item in _made(told, name)["status"]["loadBalancer"]["ingress"][:1]]


def _made(told: Told, name: str) -> JsonObject:
    return next(made for item, made in told if item.name == name)
