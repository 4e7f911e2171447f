"""pyproxy's IPVS mode compared with that of the real kube-proxy, on a kernel with IPVS (`python -m tests.guest`).

In some cases pyproxy follows the iptables mode, and kube-proxy's IPVS mode does not (docs/differences.md). Packets of
these cases are not compared, and have separate tests: a test that fails because both behave the same means that its
row is outdated.
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
"""A Service that is deleted."""

Created = Sequence[tuple[Entry, JsonObject]]


@pytest.fixture(scope="module")
def pair(control_plane: ControlPlane) -> Iterator[Pair]:
    """Provide two labs with proxies in IPVS mode."""
    with Pair(control_plane, IPVS, [CLUSTER_CIDR_FLAG]) as started:
        yield started


@pytest.fixture(scope="module")
def created(pair: Pair) -> Created:
    """Provide a few Services of every kind on both sides."""
    return pair.replace_objects(FOR_IPVS)


def test_packets_have_the_same_results(pair: Pair, created: Created) -> None:
    """For every feature of Services packets have the same results, except for intended differences."""
    assert "" == _unwanted(pair, created)


def _unwanted(pair: Pair, created: Created) -> str:
    entries = {item.name: item for item, _ in created}
    listed = {ip for item, _ in created for ip in item.service["spec"].get("externalIPs", ())}
    found = core_and_further(destinations(created), FURTHER_PACKETS)
    compared = [
        packet
        for packet in found
        if not _is_otherwise(packet, entries[packet.destination.service])
        and not _goes_to_a_contested_address(packet, listed)
    ]
    assert len(compared) > len(found) / 2
    return "\n".join(divergences(pair, created, compared))


def _goes_to_a_contested_address(packet: Packet, listed: Container[str]) -> bool:
    """Return whether a Service lists the packet's source or destination, an address of a node, as external IP.

    With kube-proxy every node then claims this address.
    """
    ips = {packet.destination.to.ip, *packet.source.bound}
    return any(str(ip) in listed for node in ("node1", "node2") for ip in ips.intersection(SECOND_ADDRESSES[node]))


def _is_otherwise(packet: Packet, item: Entry) -> bool:
    """Return whether a row of docs/differences.md applies to a packet."""
    spec = item.service["spec"]
    to = packet.destination
    if not to.is_served:
        # With kube-proxy the node has the address and refuses the packet; with pyproxy it forwards the packet.
        return any(where in to.what for where in ("external IP, another port", "at external IP"))
    if to.what == "cluster IP":
        node = NODE_OF.get(packet.source.host, "node1")
        return "internalTrafficPolicy" in spec and node not in _nodes(item)
    return "externalTrafficPolicy" in spec and packet.source.host in NODE_OF


def _nodes(item: Entry) -> set[str | None]:
    """Return the nodes with a ready endpoint."""
    return {
        endpoint.get("nodeName")
        for each in item.slices
        for endpoint in each["endpoints"]
        if endpoint["conditions"].get("ready", True)
    }


def test_node_and_external_policy_local(pair: Pair, created: Created) -> None:
    """With kube-proxy, a node without a local endpoint sends its own packets to other nodes, and gets no answer."""
    [ip] = _external_ips(created, "local")
    met = [_met(side, "node2", ip) for side in pair.sides]

    assert [Verdict.TIMEOUT, Verdict.REPLY] == [outcome.verdict for outcome in met]
    assert "pod1-1" == met[1].server


def test_internal_policy_local_without_a_local_endpoint(pair: Pair, created: Created) -> None:
    """With kube-proxy, packets that should be dropped are refused, or reach endpoints of other nodes."""
    elsewhere, nowhere = (_cluster_ip(created, name) for name in ("internal-local", "internal-nowhere"))
    probes = udp(elsewhere, 80), tcp(nowhere, 80)
    kube_proxy, pyproxy = (side.lab["node2"].probe(*probes) for side in pair.sides)

    assert [Verdict.REPLY, Verdict.REFUSED] == [outcome.verdict for outcome in kube_proxy]
    assert [Verdict.TIMEOUT] * 2 == [outcome.verdict for outcome in pyproxy]


def test_addresses_are_bound(pair: Pair, created: Created) -> None:
    """The addresses are bound to a device by kube-proxy, and routed over it by pyproxy."""
    ip = _cluster_ip(created, "cluster")
    listings = [side.lab["node1"].run("ip", "address", "show", "dev", "kube-ipvs0") for side in pair.sides]

    assert [True, False] == [f"inet {ip}/32" in listing for listing in listings]


def test_external_ip_of_another_node(pair: Pair, created: Created) -> None:
    """If a Service lists an address of node1, kube-proxy claims it on node2, and pyproxy only the Service's port."""
    [address] = {entry.service["spec"]["externalIPs"][0] for entry, _ in created if entry.name == "address-of-a-node"}
    kube_proxy, pyproxy = (side.lab["node2"].probe(tcp(address, PORT), tcp(address, 80)) for side in pair.sides)

    assert ["refused", "reply"] == [outcome.verdict.value for outcome in kube_proxy]
    assert ["node1", "pod2-1"] == [outcome.server for outcome in pyproxy]


def test_virtual_servers_of_other_agents(pair: Pair, created: Created) -> None:  # noqa: ARG001 - for its Services
    """Foreign virtual servers are deleted by kube-proxy at its next sync, and kept by pyproxy."""
    for side in pair.sides:
        side.lab["node1"].run("ipvsadm", "-A", "-t", FOREIGN, "-s", "wlc")
    pair.catch_up()

    assert [False, True] == [FOREIGN in side.lab["node1"].run("ipvsadm", "-Ln") for side in pair.sides]


def test_connections_of_a_service_that_goes(pair: Pair) -> None:
    """Connections of a deleted Service end with kube-proxy, and continue with pyproxy."""
    [(_, made)] = pair.replace_objects(State((web := entry(WEB, "pod1-1"),)))
    ip = made["spec"]["clusterIP"]
    connections = [side.lab.client_pod.connect(tcp(ip, 80)) for side in pair.sides]
    pair.remove_slices(web)
    pair.remove_service(web.name)
    pair.catch_up()

    assert [None, "pod1-1"] == [_ask(connection) for connection in connections]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Test further states with --long: kube-proxy needs a minute or more to sync some of them."""
    if "state" in metafunc.fixturenames:
        seed = metafunc.config.getoption("hypothesis_seed") or "0"
        states = {"everything": together(STATES)}
        states |= {f"generated-{number}": generated_state(seed, number) for number in range(GENERATED)}
        metafunc.parametrize("state", states.values(), ids=states.keys())


@pytest.mark.long
def test_packets_in_random_states(pair: Pair, state: State) -> None:
    """For random Services, slices and Nodes, packets have the same results."""
    assert "" == _unwanted(pair, pair.replace_objects(state))


def _ask(connection: Connection) -> str | None:
    with connection:
        return connection.ask().server


def _met(side: Side, source: str, ip: str) -> Outcome:
    [outcome] = side.lab[source].probe(tcp(ip, 80))
    return outcome


def _cluster_ip(created: Created, name: str) -> str:
    return str(_made(created, name)["spec"]["clusterIPs"][0])


def _external_ips(created: Created, name: str) -> list[str]:
    """Return the IPv4 load balancer IPs of a Service."""
    return [item["ip"] for item in _made(created, name)["status"]["loadBalancer"]["ingress"][:1]]


def _made(created: Created, name: str) -> JsonObject:
    return next(made for item, made in created if item.name == name)
