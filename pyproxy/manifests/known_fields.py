"""All fields of the API of Kubernetes 1.37 in the kinds that pyproxy reads, to find misspelt fields in files.

The structs add to those of `wire` the fields that pyproxy does not read. An API server would refuse or drop an unknown
field, but files do not pass through one: without this check a Service with ``clusterIp`` would silently have no cluster
IP. Objects from the API server are not checked.

The structs are a fast path as well: an object that can be decoded as one has no unknown field, and the result is a wire
struct. Programs write status and annotations, so most of their fields are not checked.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Literal

from msgspec import Raw, field, inspect
from msgspec.json import Decoder

from pyproxy.decode import wire
from pyproxy.decode.fields import shown
from pyproxy.model.suggestion import suggestion

# `Raw` fields are accepted unread: msgspec keeps a reference to their bytes. With `forbid_unknown_fields` any other field is
# a ValidationError, which stops at the first one; `unknown_fields` then finds all.
IGNORED = Raw()


class ObjectMeta(wire.ObjectMeta, frozen=True, gc=False, rename="camel", forbid_unknown_fields=True):
    """meta/v1 ObjectMeta."""

    generate_name: Raw = IGNORED
    self_link: Raw = IGNORED
    generation: Raw = IGNORED
    deletion_grace_period_seconds: Raw = IGNORED
    owner_references: Raw = IGNORED
    finalizers: Raw = IGNORED
    managed_fields: Raw = IGNORED


class ServicePort(wire.ServicePort, frozen=True, gc=False, rename="camel", forbid_unknown_fields=True):
    """core/v1 ServicePort."""

    app_protocol: Raw = IGNORED
    target_port: Raw = IGNORED


class ClientIPConfig(wire.ClientIPConfig, frozen=True, gc=False, forbid_unknown_fields=True):
    """core/v1 ClientIPConfig."""


class SessionAffinityConfig(wire.SessionAffinityConfig, frozen=True, gc=False, forbid_unknown_fields=True):
    """core/v1 SessionAffinityConfig."""

    client_ip: ClientIPConfig | None = field(name="clientIP", default=None)


class ServiceSpec(wire.ServiceSpec, frozen=True, gc=False, rename="camel", forbid_unknown_fields=True):
    """core/v1 ServiceSpec."""

    ports: Sequence[ServicePort] | None = None
    session_affinity_config: SessionAffinityConfig | None = None
    external_name: Raw = IGNORED
    ip_family_policy: Raw = IGNORED
    load_balancer_class: Raw = IGNORED
    load_balancer_ip: Raw = field(name="loadBalancerIP", default=IGNORED)
    publish_not_ready_addresses: Raw = IGNORED
    traffic_distribution: Raw = IGNORED


# The kind is the tag of the union `KnownObject`, so that one pass over the bytes selects the struct and decodes it. A tag or a
# version that does not fit raises, and the object takes the slow path.
class Service(
    wire.Service, frozen=True, gc=False, kw_only=True, tag_field="kind", tag="Service", forbid_unknown_fields=True
):
    """core/v1 Service."""

    api_version: Literal["v1"] = field(name="apiVersion")
    metadata: ObjectMeta | None = None
    spec: ServiceSpec | None = None


class EndpointConditions(wire.EndpointConditions, frozen=True, gc=False, forbid_unknown_fields=True):
    """discovery.k8s.io/v1 EndpointConditions."""


class Hint(wire.Hint, frozen=True, gc=False, forbid_unknown_fields=True):
    """discovery.k8s.io/v1 ForZone and ForNode."""


class EndpointHints(wire.EndpointHints, frozen=True, gc=False, rename="camel", forbid_unknown_fields=True):
    """discovery.k8s.io/v1 EndpointHints."""

    for_zones: Sequence[Hint] | None = None
    for_nodes: Sequence[Hint] | None = None


class Endpoint(wire.Endpoint, frozen=True, gc=False, rename="camel", forbid_unknown_fields=True):
    """discovery.k8s.io/v1 Endpoint."""

    conditions: EndpointConditions | None = None
    hints: EndpointHints | None = None
    hostname: Raw = IGNORED
    target_ref: Raw = IGNORED
    deprecated_topology: Raw = IGNORED
    zone: Raw = IGNORED


class EndpointPort(wire.EndpointPort, frozen=True, gc=False, rename="camel", forbid_unknown_fields=True):
    """discovery.k8s.io/v1 EndpointPort and core/v1 EndpointPort."""

    app_protocol: Raw = IGNORED


# The API version selects among groups: v1beta1 slices had other fields, and Knative's Service is another kind.
class EndpointSlice(
    wire.EndpointSlice,
    frozen=True,
    gc=False,
    rename="camel",
    kw_only=True,
    tag_field="kind",
    tag="EndpointSlice",
    forbid_unknown_fields=True,
):
    """discovery.k8s.io/v1 EndpointSlice."""

    api_version: Literal["discovery.k8s.io/v1"]
    metadata: ObjectMeta | None = None
    endpoints: Sequence[Endpoint] | None = None
    ports: Sequence[EndpointPort] | None = None


class EndpointAddress(wire.EndpointAddress, frozen=True, gc=False, rename="camel", forbid_unknown_fields=True):
    """core/v1 EndpointAddress."""

    hostname: Raw = IGNORED
    target_ref: Raw = IGNORED


class EndpointSubset(wire.EndpointSubset, frozen=True, gc=False, rename="camel", forbid_unknown_fields=True):
    """core/v1 EndpointSubset."""

    addresses: Sequence[EndpointAddress] | None = None
    not_ready_addresses: Sequence[EndpointAddress] | None = None
    ports: Sequence[EndpointPort] | None = None


class Endpoints(
    wire.Endpoints, frozen=True, gc=False, kw_only=True, tag_field="kind", tag="Endpoints", forbid_unknown_fields=True
):
    """core/v1 Endpoints."""

    api_version: Literal["v1"] = field(name="apiVersion")
    metadata: ObjectMeta | None = None
    subsets: Sequence[EndpointSubset] | None = None


class Taint(wire.Taint, frozen=True, gc=False, rename="camel", forbid_unknown_fields=True):
    """core/v1 Taint."""

    value: Raw = IGNORED
    effect: Raw = IGNORED
    time_added: Raw = IGNORED


# A subclass has to repeat the names that "camel" does not give, and every field whose type it narrows.
class NodeSpec(wire.NodeSpec, frozen=True, gc=False, rename="camel", forbid_unknown_fields=True):
    """core/v1 NodeSpec."""

    pod_cidr: str | None = field(name="podCIDR", default=None)
    pod_cidrs: Sequence[str] | None = field(name="podCIDRs", default=None)
    config_source: Raw = IGNORED
    external_id: Raw = field(name="externalID", default=IGNORED)
    pod_preemption_policy: Raw = IGNORED
    provider_id: Raw = field(name="providerID", default=IGNORED)
    taints: Sequence[Taint] | None = None
    unschedulable: Raw = IGNORED


class Node(wire.Node, frozen=True, gc=False, kw_only=True, tag_field="kind", tag="Node", forbid_unknown_fields=True):
    """core/v1 Node."""

    api_version: Literal["v1"] = field(name="apiVersion")
    metadata: ObjectMeta | None = None
    spec: NodeSpec | None = None


class ServiceCIDRSpec(wire.ServiceCIDRSpec, frozen=True, gc=False, forbid_unknown_fields=True):
    """networking.k8s.io/v1 ServiceCIDRSpec."""


class ServiceCIDR(
    wire.ServiceCIDR,
    frozen=True,
    gc=False,
    kw_only=True,
    tag_field="kind",
    tag="ServiceCIDR",
    forbid_unknown_fields=True,
):
    """networking.k8s.io/v1 ServiceCIDR."""

    api_version: Literal["networking.k8s.io/v1"] = field(name="apiVersion")
    metadata: ObjectMeta | None = None
    spec: ServiceCIDRSpec | None = None
    status: Raw = IGNORED


KnownObject = Service | EndpointSlice | Endpoints | Node | ServiceCIDR
KNOWN_OBJECT: Decoder[KnownObject] = Decoder(KnownObject)
"""Decodes an object of one of our kinds without unknown fields and wrong types; any other object raises."""

_KINDS: Mapping[str, type[KnownObject]] = {
    "Service": Service,
    "EndpointSlice": EndpointSlice,
    "Endpoints": Endpoints,
    "Node": Node,
    "ServiceCIDR": ServiceCIDR,
}


class _Shape(dict[str, "_Shape | None"]):
    """Known fields by their API name, with the shape of those whose fields are checked; a list has that of its items."""


def unknown_fields(kind: str, tree: object) -> Iterator[tuple[str, str]]:
    """Yield path and reason of each unknown field in an object of one of our kinds."""
    return _unknown(_shape_of_kind(kind), tree, "")


def _unknown(shape: _Shape, tree: object, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(tree, list):
        for index, item in enumerate(tree):
            yield from _unknown(shape, item, f"{path}[{index}]")
    elif isinstance(tree, dict):
        for name, value in tree.items():
            place = f"{path}.{shown(str(name))}" if path else shown(str(name))
            if name not in shape:
                yield place, f"unknown field, ignored{suggestion(str(name), shape)}"
            elif (inner := shape[name]) is not None:
                yield from _unknown(inner, value, place)


# Made for a kind only when a file has an unknown field in it, which is rare.
@cache
def _shape_of_kind(kind: str) -> _Shape:
    # The tag that distinguishes the kinds is not a field of the struct.
    return _Shape({"kind": None, **(_shape(inspect.type_info(_KINDS[kind])) or {})})


def _shape(info: inspect.Type) -> _Shape | None:
    # The struct within optional and list types; None if its unknown fields are allowed.
    if isinstance(info, inspect.StructType):
        if not info.forbid_unknown_fields:
            return None
        return _Shape({known.encode_name: _shape(known.type) for known in info.fields})
    if isinstance(info, inspect.UnionType):
        return next((shape for member in info.types if (shape := _shape(member)) is not None), None)
    return _shape(info.item_type) if isinstance(info, inspect.CollectionType) else None
