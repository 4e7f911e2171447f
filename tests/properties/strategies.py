"""Hypothesis strategies for valid states of a cluster.

Every generated value could come from `pyproxy.decode`, and every field takes all relevant kinds of values. With
``contested=False`` no two Services claim the same address and port, and an API server would accept all objects, so that
the behaviour of the real kube-proxy is unambiguous.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations
from typing import TypeVar

from hypothesis import strategies as st

from pyproxy.backends.iptables.static_rules import IptablesSettings
from pyproxy.backends.ipvs.static_rules import IpvsSettings
from pyproxy.backends.nftables.layout import NftablesSettings
from pyproxy.model.address import Family, Network
from pyproxy.model.change import Kind, ObjectChange, Put, Removed, Replaced
from pyproxy.model.endpoint import EndpointSlice, SliceEndpoint, SlicePort
from pyproxy.model.names import NamespacedName, Protocol
from pyproxy.model.node import LocalTraffic, Node
from pyproxy.model.service import Service, ServicePort
from tests.properties.world import WORLD, World, of_families

T = TypeVar("T")

FAMILIES = ((Family.IPV4,), (Family.IPV6,), (Family.IPV4, Family.IPV6), (Family.IPV6, Family.IPV4))
CONDITIONS = (
    *[(True, True, False)] * 4,
    *[(False, True, True)] * 2,
    (True, False, False),
    (True, True, True),
    (True, False, True),
    (False, True, False),
    (False, False, True),
    (False, False, False),
)
"""All combinations of ready, serving, terminating; common ones are more frequent."""
CREATED = ("2026-01-01T00:00:00Z", "2026-01-01T00:00:01Z")
_HEALTH_CHECK_NODE_PORT = 32000
_PORTS_APART = 1000
_NODE_PORTS_APART = 100


@dataclass(frozen=True, slots=True)
class Cluster:
    """The objects that an agent gets."""

    services: tuple[Service, ...]
    slices: tuple[EndpointSlice, ...]
    node: Node

    def changes(self) -> tuple[Put | Replaced, ...]:
        """Return the first changes of a source."""
        return (
            Put(self.node),
            Replaced(Kind.SERVICE, self.services),
            Replaced(Kind.ENDPOINT_SLICE, self.slices),
        )


def _some(pool: Sequence[T], most: int = 2, least: int = 0) -> st.SearchStrategy[tuple[T, ...]]:
    """Draw between `least` and `most` distinct items in any order; all numbers of items are equally likely."""
    return _choices(tuple(pool), least, min(most, len(pool)))


@lru_cache
def any_of(pool: Iterable[T]) -> st.SearchStrategy[T]:
    """Draw an item of a hashable pool; the strategy is cached, because creating it is most of the cost of a draw."""
    return st.sampled_from(list(pool))


# A draw costs more than the tested code. So all choices are precomputed, and a choice takes two draws.
@lru_cache
def _choices(pool: tuple[T, ...], least: int, most: int) -> st.SearchStrategy[tuple[T, ...]]:
    return st.one_of(*(st.sampled_from(list(permutations(pool, size))) for size in range(least, most + 1)))


_RARELY = any_of((False, True, *[False] * 8))


@st.composite
def service_ports(
    draw: st.DrawFn, world: World, index: int, *, has_node_ports: bool, contested: bool
) -> tuple[ServicePort, ...]:
    """Draw the ports of a Service: one with or without a name, or several with names."""
    names = draw(_some(world.port_names, most=len(world.port_names), least=1))
    if len(names) == 1 and draw(st.booleans()):
        names = ("",)
    numbers_and_protocols = tuple((number, protocol) for number in world.port_numbers for protocol in Protocol)
    wanted = draw(_some(numbers_and_protocols, most=len(names), least=len(names)))
    ports: list[ServicePort] = []
    for place, (name, (number, protocol)) in enumerate(zip(names, wanted, strict=True)):
        node_port = 0
        if has_node_ports:
            alone = world.node_ports[0] + index * _NODE_PORTS_APART + place
            node_port = draw(any_of(world.node_ports)) if contested else alone
        ports.append(ServicePort(name, protocol, number if contested else number + index * _PORTS_APART, node_port))
    return tuple(ports)


@st.composite
def services(draw: st.DrawFn, world: World = WORLD, index: int = 0, *, contested: bool = True) -> Service:
    """Draw a Service with the name of an index.

    Args:
        draw: provided by hypothesis.
        world: the pools.
        index: the index of the Service in the world.
        contested: whether addresses and ports may conflict with other Services, and defaults of the API server be
        missing.
    """
    kind = draw(any_of(("ClusterIP", "NodePort", "LoadBalancer", "LoadBalancer")))
    families = draw(any_of(FAMILIES))
    is_balanced = kind == "LoadBalancer"
    external_ips = draw(_some(of_families(world.external_ips, families)))
    is_external_local = (kind != "ClusterIP" or bool(external_ips)) and draw(st.booleans())
    has_node_ports = kind == "NodePort" or (is_balanced and draw(st.booleans()))
    ranges = [block for block in world.source_ranges if block.family in families]
    return Service(
        name=world.service_names[index],
        families=families,
        cluster_ips=draw(_cluster_ips(world, index, families, contested=contested)),
        ports=draw(service_ports(world, index, has_node_ports=has_node_ports, contested=contested)),
        external_ips=external_ips,
        load_balancer_ips=draw(_some(of_families(world.load_balancer_ips, families))) if is_balanced else (),
        load_balancer_source_ranges=draw(_some(ranges)) if is_balanced else (),
        affinity_seconds=draw(any_of((None, None, 1, 10800, 86400))),
        internal_policy_local=draw(st.booleans()),
        external_policy_local=is_external_local,
        health_check_node_port=_HEALTH_CHECK_NODE_PORT + index if is_balanced and is_external_local else 0,
        created=draw(any_of(("", *CREATED) if contested else CREATED)),
    )


def _cluster_ips(
    world: World, index: int, families: Sequence[Family], *, contested: bool
) -> st.SearchStrategy[tuple[bytes, ...]]:
    own = tuple(world.cluster_ip(index, family) for family in families)
    if not contested:
        return st.just(own)
    anyone = st.tuples(*(any_of(tuple(of_families(world.cluster_ips, (family,))[:2])) for family in families))
    return st.one_of(st.just(own), st.just(own), anyone, st.just(()))


@st.composite
def slice_endpoints(draw: st.DrawFn, world: World, family: Family) -> tuple[SliceEndpoint, ...]:
    """Draw the endpoints of a slice: with any conditions and hints, on this node, another node or no node."""
    hints = draw(any_of(("none", "none", "zones", "nodes", "both", "some")))
    found: list[SliceEndpoint] = []
    for ip in draw(_some(of_families(world.endpoint_ips, (family,)), most=4, least=0 if draw(_RARELY) else 1)):
        ready, serving, terminating = draw(any_of(CONDITIONS))
        is_hinted = hints != "some" or draw(st.booleans())
        found.append(
            SliceEndpoint(
                ip,
                node_name=draw(any_of(("", *world.node_names))),
                ready=ready,
                serving=serving,
                terminating=terminating,
                zone_hints=draw(_hinted(world.zones)) if is_hinted and hints in {"zones", "both", "some"} else (),
                node_hints=draw(_hinted(world.node_names)) if is_hinted and hints in {"nodes", "both"} else (),
            )
        )
    return tuple(found)


def _hinted(names: Sequence[str]) -> st.SearchStrategy[tuple[str, ...]]:
    return _some(names, least=1)


@st.composite
def endpoint_slices(draw: st.DrawFn, world: World, service: Service, family: Family, name: str) -> EndpointSlice:
    """Draw a slice of a Service in a family, mostly with the Service's port names, with any numbers."""
    ports = tuple((port.name, port.protocol) for port in service.ports)
    if draw(_RARELY):
        ports = (*ports[1:], ("other", Protocol.TCP))
    return EndpointSlice(
        NamespacedName(service.name.namespace, f"{service.name.name}-{name}{family.value}"),
        service.name,
        family,
        tuple(SlicePort(*port, draw(any_of(world.endpoint_ports))) for port in ports),
        draw(slice_endpoints(world, family)),
    )


@st.composite
def nodes(draw: st.DrawFn, world: World = WORLD) -> Node:
    """Draw the Node of this node, with any of its addresses, pod CIDRs and zones."""
    families = draw(any_of(((), *FAMILIES)))
    return Node(
        name=world.node_name,
        ips=draw(_some(of_families(world.node_ips, families), most=4)),
        pod_cidrs=tuple(block for block in world.pod_cidrs if block.family in families),
        zone=draw(any_of(("", *world.zones))),
    )


@st.composite
def clusters(draw: st.DrawFn, world: World = WORLD, *, contested: bool = True, most_services: int = 3) -> Cluster:
    """Draw a cluster: Services, their slices, sometimes a slice without a Service, and the Node of this node."""
    everyone = range(len(world.service_names))
    indices = draw(_some(everyone, most=most_services, least=0 if draw(_RARELY) else 1))
    all_services = [draw(services(world, index, contested=contested)) for index in indices]
    all_slices = [
        draw(endpoint_slices(world, service, family, name))
        for service in all_services
        for family in service.families
        for name in draw(any_of(("x", "x", "xy", "yxz", "")))
    ]
    if all_services and draw(_RARELY):
        all_services.pop()
    return Cluster(tuple(all_services), tuple(all_slices), draw(nodes(world)))


def local_traffics(family: Family, world: World = WORLD) -> st.SearchStrategy[LocalTraffic | None]:
    """Draw a way to detect local traffic, or none."""
    cidrs: list[Network] = [block for block in (*world.cluster_cidrs, *world.pod_cidrs) if block.family is family]
    return any_of(
        (
            None,
            *(LocalTraffic(cidr=cidr) for cidr in cidrs),
            LocalTraffic(interface="cni0"),
            LocalTraffic(interface_prefix="veth"),
        )
    )


@st.composite
def iptables_settings(draw: st.DrawFn, family: Family | None = None, world: World = WORLD) -> IptablesSettings:
    """Draw settings of the iptables mode."""
    family = family or draw(any_of(Family))
    listed = _some(of_families((*world.node_ips, *world.gateways), (family,)))
    return IptablesSettings(
        family=family,
        masquerade_mark=draw(any_of((0x4000, 0x4000, 0x1, 0x80000000))),
        masquerade_all=draw(st.booleans()),
        local_traffic=draw(local_traffics(family, world)),
        localhost_node_ports=family is Family.IPV4 and draw(st.booleans()),
        node_port_ips=draw(st.one_of(st.none(), st.none(), listed)),
        drop_invalid=draw(st.booleans()),
        random_fully=draw(st.booleans()),
        hairpin_by_packet=draw(st.booleans()),
    )


@st.composite
def nftables_settings(draw: st.DrawFn, family: Family | None = None, world: World = WORLD) -> NftablesSettings:
    """Draw settings of the nftables mode."""
    family = family or draw(any_of(Family))
    ips = tuple(of_families(world.node_ips, (family,)))
    cidrs = tuple(block for block in world.pod_cidrs if block.family is family)
    return NftablesSettings(
        family=family,
        masquerade_mark=draw(any_of((0x4000, 0x1, 0x80000000))),
        masquerade_all=draw(st.booleans()),
        local_traffic=draw(local_traffics(family, world)),
        node_port_ips=draw(any_of((None, (), ips))),
        service_cidrs=draw(any_of(((), cidrs[:1], cidrs))),
    )


@st.composite
def ipvs_settings(draw: st.DrawFn, world: World = WORLD) -> IpvsSettings:
    """Draw settings of the IPVS mode."""
    family = draw(any_of(Family))
    ips = of_families((*world.node_ips, *world.gateways), (family,))
    return IpvsSettings(
        family=family,
        masquerade_all=draw(st.booleans()),
        local_traffic=draw(local_traffics(family, world)),
        local_ips=frozenset(ips),
        node_port_ips=draw(any_of(((), tuple(ips)))),
    )


@st.composite
def changes(draw: st.DrawFn, states: Sequence[Cluster]) -> ObjectChange:
    """Draw one change towards or away from given states of a cluster."""
    state = draw(st.sampled_from(states))
    objects: list[Service | EndpointSlice | Node] = [*state.services, *state.slices, state.node]
    item = draw(st.sampled_from(objects))
    match draw(any_of(("put", "put", "put", "remove", "replace"))):
        case "put":
            return Put(item)
        case "remove":
            return removal(item)
        case _ if isinstance(item, Node):
            return Replaced(Kind.NODE, (item,))
        case _ if isinstance(item, Service):
            return Replaced(Kind.SERVICE, state.services)
        case _:
            return Replaced(Kind.ENDPOINT_SLICE, state.slices)


def removal(item: Service | EndpointSlice | Node) -> Removed:
    """Return the change that removes an object."""
    match item:
        case Service():
            return Removed(Kind.SERVICE, item.name)
        case EndpointSlice():
            return Removed(Kind.ENDPOINT_SLICE, item.name)
        case Node():
            return Removed(Kind.NODE, NamespacedName("", item.name))
