"""Packets from every kind of source to every kind of destination of the Services of a state.

Plain values. A packet has the number of repetitions that are needed to observe all its possible results.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from itertools import chain, zip_longest
from math import ceil, log
from random import Random

from tests.lab import IPAddress, Probe, Protocol, SocketAddress

from .objects import Entry, JsonObject, possible_endpoints
from .world import (
    ADDRESSES,
    CLIENTS,
    CORE,
    CROWD,
    FURTHER,
    POD_BRIDGE,
    SECOND_ADDRESSES,
    VERSIONS,
    Source,
    crowd,
)

MISS = 1e-6
"""Upper limit of the probability that a possible endpoint of a packet is not reached."""
MOST_STICKY = 16
LOOPBACK = ("127.0.0.1", "::1")
WRONG_PORT = 4


@dataclass(frozen=True, slots=True)
class Destination:
    """An address and port, with the Service that it belongs to, and its kind."""

    service: str
    what: str
    protocol: Protocol
    to: SocketAddress
    endpoints: int
    """The number of endpoints of the Service port, in any condition."""
    is_sticky: bool
    """Whether the Service has session affinity."""
    is_served: bool
    """False if the Service has this address, or this port, but not the combination."""

    @property
    def version(self) -> int:
        """The IP version."""
        return self.to.ip.version


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet from a source to a destination, sent several times."""

    source: Source
    destination: Destination

    def __str__(self) -> str:
        """Return a readable description."""
        to = self.destination
        return f"{self.source} -> {to.to}/{to.protocol.value} ({to.service}: {to.what})"

    @property
    def is_sticky(self) -> bool:
        """Whether each client should reach only one server."""
        return self.destination.is_sticky

    def probes(self) -> list[Probe]:
        """Return enough probes to observe all possible results; those of a sticky packet have different clients."""
        to = self.destination
        tries = tries_for(to.endpoints)
        sources: Sequence[IPAddress | None] = [self.source.address(to.version)] * tries
        if self.is_sticky and self.source.host in CROWD and not self.source.bound:
            sources = crowd(self.source.host, to.version)[:tries]
        return [Probe(to.protocol, to.to, source=source) for source in sources]


def tries_for(endpoints: int) -> int:
    """Return how many random choices include every endpoint, except with probability `MISS`."""
    if endpoints < 2:
        return 1
    return ceil(log(MISS / endpoints) / log(1 - 1 / endpoints))


def destinations(entries: Iterable[tuple[Entry, JsonObject]]) -> list[Destination]:
    """Return all destinations of Services, each given with its completed object from the API server."""
    return [
        destination
        for entry, service in entries
        for wanted in service["spec"]["ports"]
        for version in VERSIONS
        for destination in _of_port(entry, service, wanted, version)
    ]


def some(found: Sequence[Packet], count: int, random: Random) -> list[Packet]:
    """Return a random selection of packets, evenly spread over destinations; with few sticky ones, which are slow."""
    by_destination: dict[Destination, list[Packet]] = {}
    for packet in random.sample(found, len(found)):
        by_destination.setdefault(packet.destination, []).append(packet)
    in_turn = [packet for packet in chain.from_iterable(zip_longest(*by_destination.values())) if packet]
    sticky = [packet for packet in in_turn if packet.is_sticky][:MOST_STICKY]
    return [*sticky, *(packet for packet in in_turn if not packet.is_sticky)][:count]


def packets(sources: Sequence[Source], found: Iterable[Destination]) -> list[Packet]:
    """Return all useful packets from the sources to the destinations."""
    return [
        Packet(source, destination) for destination in found for source in sources if _makes_sense(source, destination)
    ]


def core_and_further(found: Iterable[Destination], further: int) -> list[Packet]:
    """Return all packets from the core sources to frontends of Services, and a selection of the rest."""
    everything = packets([*CORE, *FURTHER], found)
    core = [packet for packet in everything if packet.source in CORE and packet.destination.is_served]
    rest = [packet for packet in everything if packet.source in FURTHER or not packet.destination.is_served]
    return core + some(rest, further, Random(0))  # noqa: S311 - repeatable


def _makes_sense(source: Source, destination: Destination) -> bool:
    if destination.is_sticky and (source.host not in CROWD or source.bound):
        return False  # a single client may reach any server, which shows nothing
    if destination.to.ip.is_loopback:
        return source.host.startswith("node") and not source.bound
    return True


def _of_port(entry: Entry, service: JsonObject, wanted: JsonObject, version: int) -> Iterator[Destination]:
    endpoints = possible_endpoints(entry, wanted, version)
    is_sticky = service["spec"].get("sessionAffinity") == "ClientIP"
    assert endpoints == 0 or tries_for(endpoints) <= CLIENTS or not is_sticky
    for addresses, is_served in ((_served, True), (_not_served, False)):
        for what, ip, number in addresses(service, wanted):
            address = ip_address(ip)
            if address.version == version:
                to = SocketAddress(address, number)
                yield Destination(entry.name, what, Protocol(wanted["protocol"]), to, endpoints, is_sticky, is_served)


def _served(service: JsonObject, wanted: JsonObject) -> Iterator[tuple[str, str, int]]:
    yield from ((what, ip, wanted["port"]) for what, ip in _own_addresses(service))
    if node_port := wanted.get("nodePort"):
        yield from ((f"node port at {what}", ip, node_port) for what, ip in _node_addresses())


def _not_served(service: JsonObject, wanted: JsonObject) -> Iterator[tuple[str, str, int]]:
    for what, ip in _own_addresses(service):
        yield f"{what}, another port", ip, wanted["port"] + WRONG_PORT
        if node_port := wanted.get("nodePort"):
            yield f"node port at {what}", ip, node_port


def _own_addresses(service: JsonObject) -> Iterator[tuple[str, str]]:
    spec, balancer = service["spec"], service.get("status", {}).get("loadBalancer", {})
    yield from (("cluster IP", ip) for ip in spec.get("clusterIPs", ()) if ip != "None")
    yield from (("external IP", ip) for ip in spec.get("externalIPs", ()))
    yield from (("load balancer IP", item["ip"]) for item in balancer.get("ingress", ()) if "ip" in item)


def _node_addresses() -> Iterator[tuple[str, str]]:
    for name in ("node1", "node2"):
        yield from ((name, str(ip)) for ip in ADDRESSES[name])
    yield from (("node1'", str(ip)) for ip in SECOND_ADDRESSES["node1"])
    yield from (("node1's pod bridge", str(ip)) for ip in POD_BRIDGE["node1"])
    yield from (("loopback", ip) for ip in LOOPBACK)
