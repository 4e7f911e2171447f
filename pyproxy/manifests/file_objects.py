"""Several files to one set of objects: duplicates, conflicts between Services, and Endpoints without slices.

Pure functions of manifests, in the order of their files. Of objects with the same kind and name the first is used. Which
Service gets a frontend that two Services claim is decided in `plan.claims`, and only reported here.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from operator import attrgetter
from types import MappingProxyType
from typing import TypeVar

from pyproxy.decode.objects import subject
from pyproxy.errors import DecodeError
from pyproxy.manifests.manifest import FileProblem, LocatedObject, Manifest
from pyproxy.manifests.pods import Pod, merged_pods
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
    """EndpointSlices, and slices made of core/v1 Endpoints whose endpoints are in no other slice."""
    nodes: tuple[Node, ...] = ()
    service_cidrs: tuple[ServiceCidr, ...] = ()
    unserved: tuple[UnservedService, ...] = ()
    """Services that have no rules, each name once."""
    problems: tuple[FileProblem, ...] = ()
    skipped: Counter[str] = field(default_factory=Counter)
    """Number of objects of each kind that is not read."""
    pods: tuple[Pod, ...] = ()
    """Set only if they were requested."""


def combine(manifests: Iterable[Manifest], own_ports: Mapping[int, str] = MappingProxyType({})) -> FileObjects:
    """Combine the objects of several files; of objects with the same kind and name the first is used.

    Args:
        manifests: the files.
        own_ports: the agent's own ports and their names, to report Services that use one of them.
    """
    # Nothing here depends on the order in which files changed: the same files always give the same objects.
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
    nodes = _first_of_each(
        "Node", lambda node: NamespacedName("", node.name), (one for each in manifests for one in each.nodes), problems
    )
    service_cidrs = _first_of_each(
        "ServiceCIDR", attrgetter("name"), (one for each in manifests for one in each.service_cidrs), problems
    )
    problems += _contested(services)
    problems += _reserved(services, own_ports)
    made = [one.object for one in slices]
    # A cluster mirrors Endpoints to slices only for Services without a selector; all other slices come from Pods.
    controlled, selecting = (
        frozenset[NamespacedName]().union(*sets)
        for sets in ([each.controlled for each in manifests], [each.selecting for each in manifests])
    )
    news = _news(endpoints, made, controlled)
    reason = (
        "not used: its Service has a selector, so its endpoints come from EndpointSlices only, as in a cluster; add them, "
        "or remove the selector"
    )
    for one in news:
        if _service_of(one.object) in selecting:
            what = subject("Endpoints", _service_of(one.object))
            problems.append(FileProblem(one.file, one.place, DecodeError(what, "subsets", reason)))
    mirrored = [one.object for one in news if _service_of(one.object) not in selecting]
    return FileObjects(
        tuple(one.object for one in services),
        (*made, *chain.from_iterable(mirrored)),
        tuple(one.object for one in nodes),
        tuple(one.object for one in service_cidrs),
        # A Service with rules and one without can have the same name in two files; the one with rules is used.
        tuple(_unserved(manifests, {one.object.name for one in services})),
        tuple(problems),
        sum((manifest.skipped for manifest in manifests), Counter()),
        merged_pods(pod for manifest in manifests for pod in manifest.pods),
    )


def _unserved(manifests: Iterable[Manifest], served: Collection[NamespacedName]) -> Iterable[UnservedService]:
    found: dict[NamespacedName, UnservedService] = {}
    for manifest in manifests:
        for one in manifest.unserved:
            if one.object.name not in served:
                found.setdefault(one.object.name, one.object)
    return found.values()


def _service_of(endpoints: tuple[EndpointSlice, ...]) -> NamespacedName:
    return endpoints[0].service


def _first_of_each(
    kind: str, name_of: Callable[[T], NamespacedName], every: Iterable[LocatedObject[T]], problems: list[FileProblem]
) -> list[LocatedObject[T]]:
    first: dict[NamespacedName, LocatedObject[T]] = {}
    for one in every:
        name = name_of(one.object)
        stays = first.setdefault(name, one)
        if stays is not one:
            reason = f"already defined in {stays}, which is used"
            problems.append(FileProblem(one.file, one.place, DecodeError(subject(kind, name), "metadata.name", reason)))
    return list(first.values())


def _news(
    endpoints: Sequence[LocatedObject[tuple[EndpointSlice, ...]]],
    slices: Iterable[EndpointSlice],
    controlled: frozenset[NamespacedName],
) -> list[LocatedObject[tuple[EndpointSlice, ...]]]:
    # An export of a cluster has both Endpoints and the slices made from them. A controller keeps Endpoints and its own
    # slices equal, so that these Endpoints have nothing new. Other slices are copies if they have each address.
    known = {(each.service, member.ip) for each in slices for member in each.endpoints} if endpoints else set()
    news: list[LocatedObject[tuple[EndpointSlice, ...]]] = []
    for one in endpoints:
        addresses = {(each.service, member.ip) for each in one.object for member in each.endpoints}
        if _service_of(one.object) not in controlled and not addresses <= known:
            news.append(one)
    return news


def _contested(services: Iterable[LocatedObject[Service]]) -> Iterator[FileProblem]:
    holders: dict[tuple[bytes, int, str], LocatedObject[Service]] = {}
    for one in services:
        for claim in claims(one.object):
            holder = holders.setdefault(claim, one)
            if holder is one:
                continue
            ip, port, protocol = claim
            # The order of `plan.claims`: a cluster IP first, then the older Service ("~" sorts behind any time), then by name.
            first, second = sorted(
                (holder, one),
                key=lambda each: (ip not in each.object.cluster_ips, each.object.created or "~", each.object.name),
            )
            holders[claim] = first
            loser = second.object
            if not ip:
                is_health_check = (port, protocol) == (loser.health_check_node_port, Protocol.TCP.name)
                path = "spec.healthCheckNodePort" if is_health_check else "spec.ports"
                what = f"node port {port}/{protocol}"
            else:
                path = "spec.clusterIPs" if ip in loser.cluster_ips else "status.loadBalancer.ingress"
                path = "spec.externalIPs" if ip in loser.external_ips else path
                what = f"{socket_text(ip, port)}/{protocol}"
            reason = (
                f"{what} belongs to {subject('Service', first.object.name)} ({first}): a cluster IP wins, then the older"
                " Service, then the first name"
            )
            error = DecodeError(subject("Service", loser.name), path, reason)
            yield FileProblem(second.file, second.place, error)


def claims(service: Service) -> Iterator[tuple[bytes, int, str]]:
    """Yield address, port and protocol of what only one Service can have; the address of a node port is empty."""
    addresses = (*service.cluster_ips, *service.external_ips, *service.load_balancer_ips)
    # Node ports and health check node ports are claimed on all addresses of the node, which are not known here.
    for port in service.ports:
        protocol = port.protocol.name
        for ip in addresses:
            yield ip, port.port, protocol
        if port.node_port:
            yield b"", port.node_port, protocol
    if service.health_check_node_port:
        yield b"", service.health_check_node_port, Protocol.TCP.name


def _reserved(services: Iterable[LocatedObject[Service]], own_ports: Mapping[int, str]) -> Iterator[FileProblem]:
    # One address and port can have one listener: the agent's own servers and node ports come before health checks.
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
