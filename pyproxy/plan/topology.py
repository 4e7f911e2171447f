"""Selects the endpoints that a Service port may use on this node.

All of readiness, termination, locality, topology hints and the order of fallback is here. It follows
``CategorizeEndpoints`` of kube-proxy (`pkg/proxy/topology.go`), whose contract is:

- Cluster traffic uses the ready endpoints that the hints allow; if there are none, the serving and
  terminating ones, without regard to hints.
- Local traffic uses the ready endpoints of this node; if there are none, its serving and terminating ones.
- Hints count only if every ready endpoint has them and one of them names this node (or zone).
"""

from collections.abc import Callable, Iterable

from msgspec import Struct

from pyproxy.model.address import Family
from pyproxy.model.endpoint import Endpoint, EndpointSlice, SliceEndpoint
from pyproxy.model.names import Protocol

_Candidates = dict[Endpoint, SliceEndpoint]
_NO_ENDPOINTS: tuple[Endpoint, ...] = ()


class Place(Struct, frozen=True, gc=False):
    """The location of this node, as far as the selection of endpoints depends on it."""

    node_name: str
    zone: str = ""
    """Empty if the node has no zone label; zone hints are then ignored."""


class Categorized(Struct, frozen=True, gc=False):
    """The endpoints of a Service port, sorted by address, for each kind of traffic."""

    cluster: tuple[Endpoint, ...] = ()
    """For traffic of policy Cluster. Empty if no traffic of the port has that policy."""
    local: tuple[Endpoint, ...] = ()
    """For traffic of policy Local. Empty if no traffic of the port has that policy."""
    any_usable: bool = False
    """Whether any node has a usable endpoint: decides between REJECT and DROP."""


def merge_slices(
    slices: Iterable[EndpointSlice], family: Family, port_name: str, protocol: Protocol
) -> dict[Endpoint, SliceEndpoint]:
    """Return the endpoints of one Service port from all its slices; one entry for each address and port.

    A duplicate replaces the entry before it unless it is terminating: if a new pod has got the address of a terminating
    pod, the new pod's entry counts.
    """
    found: dict[Endpoint, SliceEndpoint] = {}
    for endpoint_slice in slices:
        # A dual-stack Service has slices of each address type, and an address serves clients of its own family only.
        if endpoint_slice.family is not family:
            continue
        for port in endpoint_slice.ports:
            # The name joins the ports of Service and slice: with a named targetPort the numbers differ between pods, and
            # pods with different numbers are in different slices.
            if port.name == port_name and port.protocol is protocol:
                for item in endpoint_slice.endpoints:
                    endpoint = Endpoint(item.ip, port.port)
                    if not item.terminating or endpoint not in found:
                        found[endpoint] = item
    return found


def categorize_endpoints(
    candidates: _Candidates,
    place: Place,
    *,
    uses_cluster_endpoints: bool,
    uses_local_endpoints: bool,
) -> Categorized:
    """Return the endpoints of a Service port, divided into those for cluster traffic and those for local traffic."""
    if not candidates:
        return Categorized()
    cluster = _cluster_endpoints(candidates, place) if uses_cluster_endpoints else _NO_ENDPOINTS
    # Without policy Local, cluster endpoints are the only ones in use, and whether they exist is known already.
    if not uses_local_endpoints:
        return Categorized(cluster=cluster, any_usable=bool(cluster))
    any_usable = bool(cluster) or any(item.ready or _is_draining(item) for item in candidates.values())
    return Categorized(cluster=cluster, local=_local_endpoints(candidates, place), any_usable=any_usable)


def count_local_endpoints(slices: Iterable[EndpointSlice], node_name: str) -> int:
    """Return how many ready endpoints a Service has on a node, whatever their ports, for health checks of load balancers.

    An endpoint has an address in each family, so the family with the most addresses counts. A terminating endpoint does
    not count although it may still be in use: load balancers should leave first (`LocalReadyEndpoints` of
    ``pkg/proxy/endpointschangetracker.go``, which counts each family separately).
    """
    found: dict[Family, set[bytes]] = {}
    for endpoint_slice in slices:
        # kube-proxy counts the endpoints of ports, so a slice without ports does not count.
        if endpoint_slice.ports:
            local = (item.ip for item in endpoint_slice.endpoints if item.ready and item.node_name == node_name)
            found.setdefault(endpoint_slice.family, set()).update(local)
    return max(map(len, found.values()), default=0)


def _cluster_endpoints(candidates: _Candidates, place: Place) -> tuple[Endpoint, ...]:
    ready = {endpoint: item for endpoint, item in candidates.items() if item.ready}
    first = next(iter(ready.values()), None)
    if first is None:
        # KEP-1669: while the last pods terminate, as in a rolling update with one replica, they answer better than a
        # rejection. Pods that are neither ready nor terminating get nothing.
        return _select(candidates, _is_draining)
    # Hints count only if all endpoints have them, so the first one decides whether to look.
    if first.node_hints or first.zone_hints:
        items = ready.values()
        node, zone = place.node_name, place.zone
        # Node hints come from trafficDistribution PreferSameNode (KEP-3015), zone hints from PreferSameZone and from
        # topology-aware routing (KEP-2433).
        # Node hints precede zone hints. Hints that name other nodes or zones only would leave no endpoint, so all count.
        if all(item.node_hints for item in items) and any(node in item.node_hints for item in items):
            return tuple(sorted(endpoint for endpoint, item in ready.items() if node in item.node_hints))
        if zone and all(item.zone_hints for item in items) and any(zone in item.zone_hints for item in items):
            return tuple(sorted(endpoint for endpoint, item in ready.items() if zone in item.zone_hints))
    return tuple(sorted(ready))


def _local_endpoints(candidates: _Candidates, place: Place) -> tuple[Endpoint, ...]:
    # An endpoint without a node name is local nowhere, even if the name of this node were empty.
    def is_local(item: SliceEndpoint) -> bool:
        return bool(item.node_name) and item.node_name == place.node_name

    # Hints do not count, because policy Local demands more than any hint. Terminating endpoints let a load balancer
    # that has not yet noticed the failing health check finish what it sends here (KEP-1669).
    ready = _select(candidates, lambda item: item.ready and is_local(item))
    return ready or _select(candidates, lambda item: _is_draining(item) and is_local(item))


def _is_draining(item: SliceEndpoint) -> bool:
    return item.serving and item.terminating


def _select(candidates: _Candidates, usable: Callable[[SliceEndpoint], bool]) -> tuple[Endpoint, ...]:
    return tuple(sorted(endpoint for endpoint, item in candidates.items() if usable(item)))
