"""Generated packets, through the kernel and through the interpreter of the kernel's rules: both have the same result.

The Services, their endpoints and the packets are drawn by hypothesis, with at most 40 packets for each cluster: in CI more
than 100 packets in each mode, with ``--long`` more than 500.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_address

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from pyproxy.backends.explanation import Fate, Host, Packet
from pyproxy.backends.explanation import Path as Way
from pyproxy.cli.explain_live import Live, interface_towards, read_live
from pyproxy.model.address import Family, is_loopback
from pyproxy.model.names import NamespacedName
from tests.lab import Outcome, Probe, Protocol, SocketAddress, Verdict, probe_all
from tests.properties.aim import aimed_packets
from tests.properties.as_json import objects
from tests.properties.strategies import clusters
from tests.properties.world import World, ips, of_families

from .cluster import Cluster
from .modes import IS_GUEST
from .objects import ADDRESSES, NODE_OF, PORT, SECOND_PORT, ZONES
from .own_namespace import inside

CLUSTERS = settings(
    max_examples=min(45, max(5 if IS_GUEST else 6, settings().max_examples // 60)), phases=(Phase.generate,)
)
PACKETS = 40
TRIES = 2
NODE = "node1"
PODS = ("pod1-1", "pod1-2", "pod2-1", "pod2-2")
SOURCES = (NODE, "pod1-1", "client-pod", "outside1")
LAB = World(
    service_names=tuple(NamespacedName("default", f"generated-{number}") for number in range(4)),
    cluster_ips=ips(
        *(f"10.96.0.{number}" for number in range(190, 194)), *(f"fd00:10:96::{number}" for number in range(190, 194))
    ),
    endpoint_ips=ips(*(address for pod in PODS for address in ADDRESSES[pod])),
    endpoint_ports=(PORT, SECOND_PORT),
    external_ips=ips("203.0.113.91", "203.0.113.92", "2001:db8:113::91", "2001:db8:113::92"),
    load_balancer_ips=ips("203.0.113.92", "203.0.113.93", "2001:db8:113::92", "2001:db8:113::93"),
    zones=tuple(ZONES.values()),
)
HOSTS = {ip_address(address).packed: name for name in SOURCES for address in ADDRESSES[name]}


def read(cluster: Cluster) -> Live:
    """Return the kernel of the node."""
    with inside(cluster.lab[NODE].namespace.path):
        return asyncio.run(read_live())


def packets_of(cluster: Cluster, generated: Iterable[Packet]) -> list[Packet]:
    """Return the packets that hosts of the lab can send, with the interface by which they arrive."""
    with inside(cluster.lab[NODE].namespace.path):
        by_source = {ip: "" if HOSTS[ip] == NODE else interface_towards(ip) for ip in HOSTS}
    return list(
        dict.fromkeys(
            replace(packet, in_interface=by_source[packet.source])
            for packet in generated
            if packet.source in HOSTS
            and not is_loopback(packet.destination)
            and bool(packet.in_interface) == (HOSTS[packet.source] != NODE)
        )
    )


def is_result(outcome: Outcome, way: Way, packet: Packet, live: Live) -> bool:
    """Return whether a packet had the result of a way."""
    match way.fate:
        case Fate.REJECTED:
            return outcome.verdict is Verdict.REFUSED
        case Fate.DROPPED:
            return outcome.verdict is Verdict.TIMEOUT
        case Fate.UNCHANGED:
            return outcome.identity is None
    assert way.endpoint is not None
    server = next(name for name, addresses in ADDRESSES.items() if str(ip_address(way.endpoint.ip)) in addresses)
    if (
        not way.is_masqueraded
        and packet.in_interface
        and HOSTS[packet.source] not in NODE_OF
        and NODE_OF[server] != NODE
    ):
        # The reply does not pass the node that has translated the packet.
        return outcome.verdict is Verdict.TIMEOUT
    if not way.is_masqueraded and way.endpoint.ip == packet.source and packet.in_interface:
        # A pod drops packets from its own address. The slice does not say that the endpoint is on this node.
        return outcome.verdict is Verdict.TIMEOUT
    is_seen_as_node = outcome.client_ip is not None and outcome.client_ip.packed in live.host.ips
    is_reached = outcome.reached == SocketAddress(ip_address(way.endpoint.ip), way.endpoint.port)
    is_own = HOSTS[packet.source] == NODE
    return is_reached and is_seen_as_node == (way.is_masqueraded or is_own)


@CLUSTERS
@given(st.data(), st.sampled_from(Family))
def test_interpreter_and_kernel(cluster: Cluster, data: st.DataObject, family: Family) -> None:
    """Verdict, endpoint and source of each packet are one of the ways that the interpreter finds."""
    generated = data.draw(clusters(LAB, contested=False))
    aim = Host(frozenset(of_families([ip for ip, name in HOSTS.items() if name == NODE], (family,))))
    random = data.draw(st.randoms(use_true_random=False))
    with cluster.having(*objects(generated)):
        live = read(cluster)
        found = packets_of(cluster, aimed_packets(generated, aim, family))
        sent = random.sample(found, min(PACKETS, len(found)))
        ways = {packet: live.rules.interpret(packet, live.host) for packet in sent}
        tried = sent * TRIES
        outcomes = probe_all([(cluster.lab[HOSTS[packet.source]], _probe(packet)) for packet in tried])
    assert all(way.is_certain for found_ways in ways.values() for way in found_ways)
    wrong = [
        f"{HOSTS[packet.source]} to {_probe(packet).to}/{packet.protocol.value}: {outcome}, expected {ways[packet]}"
        for packet, outcome in zip(tried, outcomes, strict=True)
        if not any(is_result(outcome, way, packet, live) for way in ways[packet])
    ]
    assert not wrong, "\n".join(wrong)


def _probe(packet: Packet) -> Probe:
    to = SocketAddress(ip_address(packet.destination), packet.port)
    seconds = 3.0 if IS_GUEST else 0.5
    protocol = Protocol(packet.protocol.value.upper())
    return Probe(protocol, to, source=ip_address(packet.source), timeout_seconds=seconds)
