"""The resources that are watched: path and selectors of each, and decoding of lists and events.

Pure functions. An object that cannot be decoded is an item with problems, never an exception. A page is decoded as a
whole, and object by object only if that fails, so that an invalid object does not affect its page.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import msgspec

from pyproxy.decode import wire
from pyproxy.decode.nesting import decode_json
from pyproxy.decode.objects import (
    CLUSTER_WIDE,
    Decoded,
    cluster_wide_name,
    decode_endpoint_slice,
    decode_node,
    decode_service,
    decode_service_cidr,
    object_name,
    subject,
    wrong_type,
)
from pyproxy.errors import DecodeError, SourceError
from pyproxy.model.change import Kind, Object
from pyproxy.model.names import NamespacedName
from pyproxy.model.unserved import UnservedService

W = TypeVar("W", wire.Service, wire.EndpointSlice, wire.Node, wire.ServiceCIDR)

_RAW_PAGE = msgspec.json.Decoder(wire.ObjectList[msgspec.Raw])
_HEADER = msgspec.json.Decoder(wire.Header)
# A value that is skipped is examined less than one that is built: invalid UTF-8, escapes and numbers are found only then.
_BAD_OBJECT = (msgspec.DecodeError, UnicodeDecodeError)


@dataclass(frozen=True, slots=True)
class Item:
    """One object of a list or an event."""

    name: NamespacedName
    resource_version: str
    """Empty if the metadata cannot be decoded."""
    object: Object | None
    """None without a problem: the object is not used."""
    problems: tuple[DecodeError, ...] = ()
    unserved: UnservedService | None = None
    """Set for a Service that has no rules."""

    @property
    def is_undecodable(self) -> bool:
        """Return whether the object has problems and cannot be used at all."""
        return self.object is None and bool(self.problems)


@dataclass(frozen=True, slots=True)
class ObjectPage:
    """A part of a list."""

    resource_version: str
    continue_token: str
    """Empty on the last page."""
    items: list[Item]


class Resource(Generic[W]):
    """A resource of the API that is watched."""

    def __init__(
        self,
        kind: Kind,
        path: str,
        selectors: dict[str, str],
        shapes: tuple[type[W], type[wire.ObjectList[W]]],
        decode: Callable[[W], Decoded[Any]],
    ) -> None:
        self.kind = kind
        self.path = path
        """Path of the collection, in all namespaces."""
        self.selectors = selectors
        """``labelSelector`` and ``fieldSelector`` of the query."""
        self._object: msgspec.json.Decoder[W] = msgspec.json.Decoder(shapes[0])
        self._page: msgspec.json.Decoder[wire.ObjectList[W]] = msgspec.json.Decoder(shapes[1])
        self._decode: Callable[[W], Decoded[Any]] = decode

    def drop_field_selector(self) -> bool:
        """Remove the field selector if the resource does not depend on it, and return whether there was one."""
        # Older servers only know the name as a field of a Service. Decoding drops the additional objects.
        return self.kind is Kind.SERVICE and self.selectors.pop("fieldSelector", None) is not None

    @property
    def may_be_absent(self) -> bool:
        """Return whether the agent works without the resource, if the server does not have it or forbids it."""
        return self.kind is Kind.SERVICE_CIDR

    @property
    def permission(self) -> str:
        """Return the rule of a role that allows watching the resource, as in manifests."""
        # /api/v1/services has the core group, written as ""; /apis/discovery.k8s.io/v1/endpointslices names its group.
        *group, _, plural = self.path.removeprefix("/apis/").removeprefix("/api/").split("/")
        return f'apiGroups: ["{"".join(group)}"], resources: ["{plural}"], verbs: ["list", "watch"]'

    def decode_page(self, body: bytes) -> ObjectPage:
        """Decode a part of a list.

        Raises:
            SourceError: the body is not a list.
        """
        try:
            page = decode_json(self._page, body)
            return _page(page.metadata, [self._item(item) for item in page.items or ()])
        except _BAD_OBJECT:  # in at least one object, which the error does not identify
            pass
        try:
            raw_page = decode_json(_RAW_PAGE, body)
        except _BAD_OBJECT as error:
            message = f"{self.path}: the response is not a list: {error}"
            raise SourceError(message) from error
        return _page(raw_page.metadata, [self.decode_object(item) for item in raw_page.items or ()])

    def decode_object(self, raw: msgspec.Raw) -> Item:
        """Decode one object."""
        try:
            return self._item(decode_json(self._object, raw))
        except _BAD_OBJECT as error:
            name, resource_version = self.identify(raw)
            what = subject(self.kind.value, name)
            if isinstance(error, msgspec.ValidationError):
                problem = wrong_type(what, error)
            else:
                problem = DecodeError(what, "", str(error))
            unserved = UnservedService(name, problem=problem.complaint) if self.kind is Kind.SERVICE else None
            return Item(name, resource_version, None, (problem,), unserved)

    def identify(self, raw: msgspec.Raw) -> tuple[NamespacedName, str]:
        """Return name and resource version of an object, even if the rest cannot be decoded; empty if they cannot either."""
        try:
            metadata = decode_json(_HEADER, raw).metadata or wire.NO_METADATA
        except _BAD_OBJECT:
            metadata = wire.NO_METADATA
        return self._name(metadata), metadata.resource_version or ""

    def _item(self, item: W) -> Item:
        decoded = self._decode(item)
        metadata = item.metadata or wire.NO_METADATA
        name, version = self._name(metadata), metadata.resource_version or ""
        return Item(name, version, decoded.object, decoded.problems, decoded.unserved)

    def _name(self, metadata: wire.ObjectMeta) -> NamespacedName:
        return cluster_wide_name(metadata) if self.kind.value in CLUSTER_WIDE else object_name(metadata)


def _page(metadata: wire.ListMeta | None, items: list[Item]) -> ObjectPage:
    metadata = metadata or wire.NO_LIST_METADATA
    return ObjectPage(metadata.resource_version or "", metadata.continue_token or "", items)


def services(proxy_name: str = "") -> Resource[wire.Service]:
    """Return the Services with a packet path.

    Args:
        proxy_name: see `decode_service`.
    """
    # Selected by the server, as in kube-proxy (`cmd/kube-proxy/app/server.go`): headless Services, which may be the
    # majority, never reach the node. A Service without a cluster IP is not only headless: an ExternalName has an empty one.
    label = "service.kubernetes.io/service-proxy-name"
    labels = f"{label}={proxy_name}" if proxy_name else f"!{label}"
    selectors = {"labelSelector": labels, "fieldSelector": "spec.clusterIP!=None"}
    shapes = wire.Service, wire.ObjectList[wire.Service]
    decode = partial(decode_service, proxy_name=proxy_name)
    return Resource(Kind.SERVICE, "/api/v1/services", selectors, shapes, decode)


def endpoint_slices() -> Resource[wire.EndpointSlice]:
    """Return all EndpointSlices except those of headless Services."""
    selectors = {"labelSelector": "!service.kubernetes.io/headless"}
    shapes = wire.EndpointSlice, wire.ObjectList[wire.EndpointSlice]
    path = "/apis/discovery.k8s.io/v1/endpointslices"
    return Resource(Kind.ENDPOINT_SLICE, path, selectors, shapes, decode_endpoint_slice)


def node(name: str) -> Resource[wire.Node]:
    """Return one Node."""
    shapes = wire.Node, wire.ObjectList[wire.Node]
    return Resource(Kind.NODE, "/api/v1/nodes", {"fieldSelector": f"metadata.name={name}"}, shapes, decode_node)


def service_cidrs() -> Resource[wire.ServiceCIDR]:
    """Return the ServiceCIDRs; servers before Kubernetes 1.33 do not have them, or only as a beta."""
    shapes = wire.ServiceCIDR, wire.ObjectList[wire.ServiceCIDR]
    path = "/apis/networking.k8s.io/v1/servicecidrs"
    return Resource(Kind.SERVICE_CIDR, path, {}, shapes, decode_service_cidr)
