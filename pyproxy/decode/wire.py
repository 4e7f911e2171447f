"""The JSON of the Kubernetes API, reduced to what pyproxy reads.

This module has types only, with the names of the API; `decode.objects` has the rules for the values. Each field may be
absent or null, because Go's encoding/json reads both as the zero value. A field that is not declared is skipped without
being built. A wrong JSON type is a `msgspec.ValidationError` that names the path.

All structs are frozen and decoded from text, so they cannot form cycles and do not need the garbage collector
(`gc=False`). Lists are typed as sequences, which are read-only, so that `known_fields` may narrow their items. Labels and
annotations are structs too, so that only the keys that pyproxy uses are built. A label whose mere existence matters is
`UNSET` if absent, and None if it has no value in a file.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

from msgspec import UNSET, Raw, Struct, UnsetType, field

T = TypeVar("T")

# `type` of a WatchEvent. BOOKMARK has a version and no object, ERROR a Status instead of an object.
ADDED = "ADDED"
MODIFIED = "MODIFIED"
DELETED = "DELETED"
BOOKMARK = "BOOKMARK"
ERROR = "ERROR"


class Labels(Struct, frozen=True, gc=False):
    """The labels of any object that have an effect."""

    service_proxy_name: str | UnsetType | None = field(name="service.kubernetes.io/service-proxy-name", default=UNSET)
    headless: str | UnsetType | None = field(name="service.kubernetes.io/headless", default=UNSET)
    service_name: str | None = field(name="kubernetes.io/service-name", default=None)
    managed_by: str | None = field(name="endpointslice.kubernetes.io/managed-by", default=None)
    skip_mirror: str | None = field(name="endpointslice.kubernetes.io/skip-mirror", default=None)
    """On Endpoints: ``true`` if no controller may mirror them to EndpointSlices."""
    zone: str | None = field(name="topology.kubernetes.io/zone", default=None)


class Annotations(Struct, frozen=True, gc=False):
    """The annotations of any object that pyproxy reads."""

    last_change_trigger_time: str | None = field(name="endpoints.kubernetes.io/last-change-trigger-time", default=None)
    """RFC 3339; time of the change that caused an EndpointSlice or Endpoints."""
    ipvs_scheduler: str | None = field(name="pyproxy.io/ipvs-scheduler", default=None)
    """On a Service: its scheduler in IPVS."""
    leader: str | UnsetType | None = field(name="control-plane.alpha.kubernetes.io/leader", default=UNSET)
    """On Endpoints that are the lock of a leader election; its value names the holder."""
    initial_events_end: str | None = field(name="k8s.io/initial-events-end", default=None)
    """``true`` on the bookmark that ends the initial events of a streaming list."""


class ObjectMeta(Struct, frozen=True, gc=False, rename="camel"):
    """The metadata of any object."""

    name: str | None = None
    namespace: str | None = None
    labels: Labels | None = None
    annotations: Annotations | None = None
    resource_version: str | None = None
    creation_timestamp: str | None = None
    """RFC 3339."""
    deletion_timestamp: str | None = None
    """RFC 3339; None unless the object is being deleted."""
    uid: str | None = None


# Shared empty structs: `(x or NO_X).field` reads through absent parents without building anything.
NO_METADATA = ObjectMeta()
NO_LABELS = Labels()
NO_ANNOTATIONS = Annotations()


class ServicePort(Struct, frozen=True, gc=False, rename="camel"):
    """core/v1 ServicePort."""

    # Not targetPort: the controllers have resolved it, and slices have the number on which the pod listens.
    name: str | None = None
    protocol: str | None = None
    port: int | None = None
    node_port: int | None = None


class ClientIPConfig(Struct, frozen=True, gc=False, rename="camel"):
    """core/v1 ClientIPConfig."""

    timeout_seconds: int | None = None


class SessionAffinityConfig(Struct, frozen=True, gc=False):
    """core/v1 SessionAffinityConfig."""

    client_ip: ClientIPConfig | None = field(name="clientIP", default=None)


class ServiceSpec(Struct, frozen=True, gc=False, rename="camel"):
    """core/v1 ServiceSpec."""

    type: str | None = None
    # "None" for a headless Service; empty until the API server assigns one, and always for ExternalName.
    cluster_ip: str | None = field(name="clusterIP", default=None)
    cluster_ips: Sequence[str] | None = field(name="clusterIPs", default=None)
    ip_families: Sequence[str] | None = None
    ports: Sequence[ServicePort] | None = None
    # Go writes acronyms in capitals, which "camel" does not: externalIPs, clientIP, podCIDR need a name of their own.
    external_ips: Sequence[str] | None = field(name="externalIPs", default=None)
    selector: Mapping[str, Any] | None = None
    """Read in files only: core/v1 Endpoints of a Service with a selector are not used."""
    session_affinity: str | None = None
    session_affinity_config: SessionAffinityConfig | None = None
    internal_traffic_policy: str | None = None
    external_traffic_policy: str | None = None
    health_check_node_port: int | None = None
    allocate_load_balancer_node_ports: bool | None = None
    load_balancer_source_ranges: Sequence[str] | None = None


NO_SERVICE_SPEC = ServiceSpec()


class LoadBalancerIngress(Struct, frozen=True, gc=False, rename="camel"):
    """core/v1 LoadBalancerIngress, without the host name, which makes no rule."""

    ip: str | None = None
    # VIP: packets arrive with the load balancer's address as destination. Proxy: with that of a node port or pod.
    ip_mode: str | None = None


class LoadBalancerStatus(Struct, frozen=True, gc=False):
    """core/v1 LoadBalancerStatus."""

    ingress: Sequence[LoadBalancerIngress] | None = None


class ServiceStatus(Struct, frozen=True, gc=False, rename="camel"):
    """core/v1 ServiceStatus."""

    load_balancer: LoadBalancerStatus | None = None


class Service(Struct, frozen=True, gc=False):
    """core/v1 Service."""

    metadata: ObjectMeta | None = None
    spec: ServiceSpec | None = None
    status: ServiceStatus | None = None


class EndpointConditions(Struct, frozen=True, gc=False):
    """discovery.k8s.io/v1 EndpointConditions."""

    # ready is "serving and not terminating", unless the Service publishes addresses that are not ready.
    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class Hint(Struct, frozen=True, gc=False):
    """discovery.k8s.io/v1 ForZone and ForNode."""

    name: str | None = None


class EndpointHints(Struct, frozen=True, gc=False, rename="camel"):
    """discovery.k8s.io/v1 EndpointHints."""

    for_zones: Sequence[Hint] | None = None
    for_nodes: Sequence[Hint] | None = None


class Endpoint(Struct, frozen=True, gc=False, rename="camel"):
    """discovery.k8s.io/v1 Endpoint."""

    # 1 to 100, of which only the first has a meaning; the controllers write exactly one.
    addresses: Sequence[str] | None = None
    conditions: EndpointConditions | None = None
    hints: EndpointHints | None = None
    node_name: str | None = None


class EndpointPort(Struct, frozen=True, gc=False):
    """discovery.k8s.io/v1 EndpointPort and core/v1 EndpointPort."""

    name: str | None = None
    protocol: str | None = None
    port: int | None = None


class EndpointSlice(Struct, frozen=True, gc=False, rename="camel"):
    """discovery.k8s.io/v1 EndpointSlice."""

    metadata: ObjectMeta | None = None
    # IPv4, IPv6 or FQDN: a dual-stack Service has slices of its own for each family. Immutable.
    address_type: str | None = None
    endpoints: Sequence[Endpoint] | None = None
    ports: Sequence[EndpointPort] | None = None


class EndpointAddress(Struct, frozen=True, gc=False, rename="camel"):
    """core/v1 EndpointAddress."""

    ip: str | None = None
    node_name: str | None = None


class EndpointSubset(Struct, frozen=True, gc=False, rename="camel"):
    """core/v1 EndpointSubset: each of its addresses with each of its ports."""

    addresses: Sequence[EndpointAddress] | None = None
    not_ready_addresses: Sequence[EndpointAddress] | None = None
    ports: Sequence[EndpointPort] | None = None


class Endpoints(Struct, frozen=True, gc=False):
    """core/v1 Endpoints, which some manifests have; they are not read from the API server."""

    metadata: ObjectMeta | None = None
    subsets: Sequence[EndpointSubset] | None = None


class Taint(Struct, frozen=True, gc=False):
    """core/v1 Taint."""

    key: str | None = None


class NodeSpec(Struct, frozen=True, gc=False):
    """core/v1 NodeSpec."""

    # Assigned by the node IPAM controller, if it runs; with many network plugins a Node has none.
    pod_cidr: str | None = field(name="podCIDR", default=None)
    pod_cidrs: Sequence[str] | None = field(name="podCIDRs", default=None)
    taints: Sequence[Taint] | None = None


NO_NODE_SPEC = NodeSpec()


class NodeAddress(Struct, frozen=True, gc=False):
    """core/v1 NodeAddress."""

    type: str | None = None
    address: str | None = None


class NodeStatus(Struct, frozen=True, gc=False):
    """core/v1 NodeStatus."""

    addresses: Sequence[NodeAddress] | None = None


NO_NODE_STATUS = NodeStatus()


class Node(Struct, frozen=True, gc=False):
    """core/v1 Node."""

    metadata: ObjectMeta | None = None
    spec: NodeSpec | None = None
    status: NodeStatus | None = None


class ServiceCIDRSpec(Struct, frozen=True, gc=False):
    """networking.k8s.io/v1 ServiceCIDRSpec."""

    cidrs: Sequence[str] | None = None


NO_SERVICE_CIDR_SPEC = ServiceCIDRSpec()


class ServiceCIDR(Struct, frozen=True, gc=False):
    """networking.k8s.io/v1 ServiceCIDR."""

    metadata: ObjectMeta | None = None
    spec: ServiceCIDRSpec | None = None


class ListMeta(Struct, frozen=True, gc=False, rename="camel"):
    """meta/v1 ListMeta."""

    # The version of the whole list: a watch from it misses nothing and repeats nothing.
    resource_version: str | None = None
    continue_token: str | None = field(name="continue", default=None)
    """Empty or None on the last page."""


NO_LIST_METADATA = ListMeta()


class ObjectList(Struct, Generic[T], frozen=True, gc=False):
    """A page of a list; with items of type `Raw` if an item of a wrong type must not fail the whole page."""

    metadata: ListMeta | None = None
    items: list[T] | None = None


class WatchEvent(Struct, frozen=True, gc=False):
    """meta/v1 WatchEvent: one line of a watch."""

    type: str
    """`ADDED`, `MODIFIED`, `DELETED`, `BOOKMARK` or `ERROR`."""
    object: Raw
    """The object; a `Bookmark` for `BOOKMARK`, a `Status` for `ERROR`."""


class Bookmark(Struct, frozen=True, gc=False):
    """The object of a `BOOKMARK` event, which has only metadata."""

    metadata: ObjectMeta | None = None

    @property
    def resource_version(self) -> str:
        """Return the resource version up to which all events have been sent."""
        return (self.metadata or NO_METADATA).resource_version or ""

    @property
    def ends_initial_events(self) -> bool:
        """Return whether the streaming list is complete with this event."""
        annotations = (self.metadata or NO_METADATA).annotations or NO_ANNOTATIONS
        return annotations.initial_events_end == "true"


class Status(Struct, frozen=True, gc=False):
    """meta/v1 Status: the body of a refused request and the object of an `ERROR` event."""

    # The HTTP status, which an ERROR event cannot have: the response of its watch began with 200.
    code: int | None = None
    reason: str | None = None
    message: str | None = None


class Header(Struct, frozen=True, gc=False, rename="camel"):
    """Kind and metadata of any object, to select its type before it is decoded."""

    api_version: str | None = None
    kind: str | None = None
    metadata: ObjectMeta | None = None
