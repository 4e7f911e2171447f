"""Many files to one set of objects: what stands twice, what two Services claim, what Endpoints add to slices.

Law of this file: pure functions of manifests, in the order of their files. It decides which object stands for a name;
which Service gets a port or an address that two claim is the plan's decision, and only reported here.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from operator import attrgetter
from types import MappingProxyType
from typing import TypeVar

from pyproxy.decode.objects import subject
from pyproxy.errors import DecodeError
from pyproxy.manifests.manifest import FileProblem, LocatedObject, Manifest
from pyproxy.model.address import socket_text
from pyproxy.model.endpoint import EndpointSlice
from pyproxy.model.names import NamespacedName, Protocol
from pyproxy.model.node import Node
from pyproxy.model.service import Service
from pyproxy.model.service_cidr import ServiceCidr
from pyproxy.model.unserved import UnservedService

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FileObjects:
    """All usable objects of a set of files."""

    services: tuple[Service, ...] = ()
    slices: tuple[EndpointSlice, ...] = ()
    """EndpointSlices, and core/v1 Endpoints where they say what no slice does."""
    nodes: tuple[Node, ...] = ()
    service_cidrs: tuple[ServiceCidr, ...] = ()
    unserved: tuple[UnservedService, ...] = ()
    """Services that have no rules, each name once."""
    problems: tuple[FileProblem, ...] = ()
    skipped: Counter[str] = field(default_factory=Counter)
    """How many objects there are of each kind that is none of ours."""


def combine(manifests: Iterable[Manifest], own_ports: Mapping[int, str] = MappingProxyType({})) -> FileObjects:
    """Make one set of several files; of objects with one kind and name, the first stays.

    Args:
        manifests: the files.
        own_ports: the agent's own, and how a message names each, where Services that want one are to be reported.
    """
    manifests = tuple(manifests)
    problems = [problem for manifest in manifests for problem in manifest.problems]
    services = _first_of_each(
        "Service", attrgetter("name"), (one for each in manifests for one in each.services), problems
    )
    slices = _first_of_each(
        "EndpointSlice", attrgetter("name"), (one for each in manifests for one in each.slices), problems
    )
    endpoints = [one for each in manifests for one in each.endpoints if one.object]
    endpoints = _first_of_each("Endpoints", _service_of, endpoints, problems)
    nodes = _first_of_each("Node", _node_name, (one for each in manifests for one in each.nodes), problems)
    service_cidrs = _first_of_each(
        "ServiceCIDR", attrgetter("name"), (one for each in manifests for one in each.service_cidrs), problems
    )
    problems += _contested(services)
    problems += _reserved(services, own_ports)
    made = [one.object for one in slices]
    controlled, selecting = (
        frozenset[NamespacedName]().union(*sets)
        for sets in ([each.controlled for each in manifests], [each.selecting for each in manifests])
    )
    news = _news(endpoints, made, controlled)
    problems += [_unused(one) for one in news if _service_of(one.object) in selecting]
    mirrored = [one.object for one in news if _service_of(one.object) not in selecting]
    return FileObjects(
        tuple(one.object for one in services),
        (*made, *chain.from_iterable(mirrored)),
        tuple(one.object for one in nodes),
        tuple(one.object for one in service_cidrs),
        tuple(_unserved(manifests, {one.object.name for one in services})),
        tuple(problems),
        sum((manifest.skipped for manifest in manifests), Counter()),
    )


def _unserved(manifests: Iterable[Manifest], served: Collection[NamespacedName]) -> Iterable[UnservedService]:
    """Return the Services without rules whose names no Service with rules has."""
    found: dict[NamespacedName, UnservedService] = {}
    for manifest in manifests:
        for one in manifest.unserved:
            if one.name not in served:
                found.setdefault(one.name, one)
    return found.values()


def _service_of(endpoints: tuple[EndpointSlice, ...]) -> NamespacedName:
    return endpoints[0].service


def _node_name(node: Node) -> NamespacedName:
    return NamespacedName("", node.name)


def _first_of_each(
    kind: str, name_of: Callable[[T], NamespacedName], every: Iterable[LocatedObject[T]], problems: list[FileProblem]
) -> list[LocatedObject[T]]:
    first: dict[NamespacedName, LocatedObject[T]] = {}
    for one in every:
        name = name_of(one.object)
        stays = first.setdefault(name, one)
        if stays is not one:
            reason = f"stands in {stays} already, and that one is used"
            problems.append(FileProblem(one.file, one.place, DecodeError(subject(kind, name), "metadata.name", reason)))
    return list(first.values())


def _news(
    endpoints: Sequence[LocatedObject[tuple[EndpointSlice, ...]]],
    slices: Iterable[EndpointSlice],
    controlled: frozenset[NamespacedName],
) -> list[LocatedObject[tuple[EndpointSlice, ...]]]:
    """Return those Endpoints that are not the source or a copy of slices that are there.

    A controller keeps Endpoints and its slices equal; a slice by any other hand is a copy if it has every address.
    """
    known = {(each.service, member.ip) for each in slices for member in each.endpoints} if endpoints else set()
    news: list[LocatedObject[tuple[EndpointSlice, ...]]] = []
    for one in endpoints:
        addresses = {(each.service, member.ip) for each in one.object for member in each.endpoints}
        if _service_of(one.object) not in controlled and not addresses <= known:
            news.append(one)
    return news


def _unused(endpoints: LocatedObject[tuple[EndpointSlice, ...]]) -> FileProblem:
    reason = (
        "not used: its Service has a selector, so its endpoints come from EndpointSlices only, as in a cluster; add them, "
        "or remove the selector"
    )
    what = subject("Endpoints", _service_of(endpoints.object))
    return FileProblem(endpoints.file, endpoints.place, DecodeError(what, "subsets", reason))


def _contested(services: Iterable[LocatedObject[Service]]) -> Iterator[FileProblem]:
    """Yield a problem for each node port and each address and port of a Service that another one gets."""
    holders: dict[tuple[bytes, int, str], LocatedObject[Service]] = {}
    for one in services:
        for claim in claims(one.object):
            holder = holders.setdefault(claim, one)
            if holder is not one:
                first, second = sorted((holder, one), key=partial(_rank, claim[0]))
                holders[claim] = first
                yield _contest(claim, first, second)


def _rank(ip: bytes, one: LocatedObject[Service]) -> tuple[bool, str, NamespacedName]:
    """Rank as the plan does: the Service whose cluster IP it is, then the older one, then by name."""
    return ip not in one.object.cluster_ips, one.object.created or "~", one.object.name


def claims(service: Service) -> Iterator[tuple[bytes, int, str]]:
    """Yield what no other Service can have: address, port and protocol; a node port's address is empty."""
    addresses = (*service.cluster_ips, *service.external_ips, *service.load_balancer_ips)
    for port in service.ports:
        protocol = port.protocol.name
        for ip in addresses:
            yield ip, port.port, protocol
        if port.node_port:
            yield b"", port.node_port, protocol
    if service.health_check_node_port:
        yield b"", service.health_check_node_port, Protocol.TCP.name


def _reserved(services: Iterable[LocatedObject[Service]], own_ports: Mapping[int, str]) -> Iterator[FileProblem]:
    """Yield a problem for each health check node port that the agent or the Service itself uses otherwise."""
    for one in services:
        service = one.object
        port = service.health_check_node_port
        user = own_ports.get(port) if port else None
        if port and any((each.node_port, each.protocol) == (port, Protocol.TCP) for each in service.ports):
            user = user or "a node port of the same Service"
        if user:
            what = subject("Service", service.name)
            error = DecodeError(what, "spec.healthCheckNodePort", f"{port} is not served: it is used by {user}")
            yield FileProblem(one.file, one.place, error)


def _contest(
    claim: tuple[bytes, int, str], first: LocatedObject[Service], second: LocatedObject[Service]
) -> FileProblem:
    ip, port, protocol = claim
    service = second.object
    if not ip:
        path, what = "spec.ports", f"node port {port}/{protocol}"
        if (port, protocol) == (service.health_check_node_port, Protocol.TCP.name):
            path = "spec.healthCheckNodePort"
    else:
        what = f"{socket_text(ip, port)}/{protocol}"
        path = "spec.clusterIPs" if ip in service.cluster_ips else "status.loadBalancer.ingress"
        path = "spec.externalIPs" if ip in service.external_ips else path
    reason = (
        f"{what} is {subject('Service', first.object.name)}'s ({first}): a cluster IP counts first, then age, then name"
    )
    return FileProblem(second.file, second.place, DecodeError(subject("Service", service.name), path, reason))
