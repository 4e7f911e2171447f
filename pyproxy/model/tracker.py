"""Folds changes into the present state of the cluster and knows which Services must be planned again.

The law of this file: state in, names out. Nothing is planned here, nothing is forgotten before it was
taken, and the order in which events of different objects arrive does not matter.
"""

from collections.abc import Set as AbstractSet
from operator import attrgetter

from pyproxy.model.address import Family, Network
from pyproxy.model.change import Kind, Object, ObjectChange, Put, Removed, Replaced
from pyproxy.model.endpoint import EndpointSlice
from pyproxy.model.names import NamespacedName
from pyproxy.model.node import Node
from pyproxy.model.service import Service
from pyproxy.model.service_cidr import ServiceCidr

Triggers = dict[tuple[Family, NamespacedName], list[float]]
"""By family and Service, when the changes behind new versions of slices were made, in seconds since 1970."""
MOST_TRIGGERS = 100
"""Moments that are kept of one Service, the first ones: nobody knows how long a sync has to be waited for."""
_name = attrgetter("name")


class Tracker:
    """The last known objects, and the names of the Services that changed since they were last taken."""

    def __init__(self) -> None:
        self.services: dict[NamespacedName, Service] = {}
        self.node: Node | None = None
        self._slices: dict[NamespacedName, tuple[EndpointSlice, ...]] = {}
        """Of each Service, in the order of their names: few, so that a tuple is enough."""
        self._service_of_slice: dict[NamespacedName, NamespacedName] = {}
        self._dirty: dict[NamespacedName, None] = {}
        self._triggers: Triggers = {}
        self._known: set[Kind] = set()
        self._node_changed = False
        self._service_cidrs: dict[NamespacedName, ServiceCidr] = {}
        self._service_cidrs_changed = False

    def __repr__(self) -> str:
        return f"Tracker({len(self.services)} services, {len(self._service_of_slice)} slices, {len(self._dirty)} dirty)"

    def knows(self, *kinds: Kind) -> bool:
        """Say whether a complete list of each of these kinds has arrived. Before that nothing may be written."""
        return self._known.issuperset(kinds)

    @property
    def pending(self) -> bool:
        """Say whether anything changed since it was last taken."""
        return bool(self._dirty) or self._node_changed or self._service_cidrs_changed

    def slices(self, service: NamespacedName) -> tuple[EndpointSlice, ...]:
        """Return the slices of a Service in the order of their names."""
        return self._slices.get(service, ())

    def known(self, kind: Kind, name: NamespacedName) -> Object | None:
        """Return the last known version of an object, or None."""
        match kind:
            case Kind.SERVICE:
                return self.services.get(name)
            case Kind.ENDPOINT_SLICE:
                service = self._service_of_slice.get(name)
                return self._slice(service, name) if service is not None else None
            case Kind.NODE:
                return self.node
            case Kind.SERVICE_CIDR:
                return self._service_cidrs.get(name)

    def take_dirty(self) -> AbstractSet[NamespacedName]:
        """Return the names of Services whose Service or slices changed, and forget that they did.

        They come in the order in which that happened, which is that of their memory: a big start is planned faster so.
        """
        dirty, self._dirty = self._dirty, {}
        return dirty.keys()

    def take_triggers(self) -> Triggers:
        """Return when the changes were made that slices came with, and forget it."""
        triggers, self._triggers = self._triggers, {}
        return triggers

    def take_node_changed(self) -> bool:
        """Say whether the Node changed since the last call: every plan depends on it."""
        changed, self._node_changed = self._node_changed, False
        return changed

    def take_service_cidrs(self) -> tuple[Network, ...] | None:
        """Return where cluster IPs come from, sorted, and forget that it changed: no plan depends on it.

        None as long as there was no complete list.
        """
        self._service_cidrs_changed = False
        if not self.knows(Kind.SERVICE_CIDR):
            return None
        return tuple(sorted({network for each in self._service_cidrs.values() for network in each.cidrs}))

    def apply(self, change: ObjectChange) -> None:
        """Fold one change in. Equal objects (an informer's resync) change nothing."""
        match change:
            case Put(object=item):
                self._put(item)
            case Removed(kind=Kind.SERVICE, name=name):
                self._remove_service(name)
            case Removed(kind=Kind.ENDPOINT_SLICE, name=name):
                self._remove_slice(name)
            case Removed(kind=Kind.NODE):
                self._set_node(None)
            case Removed(kind=Kind.SERVICE_CIDR, name=name):
                self._remove_service_cidr(name)
            case Replaced(kind=kind, objects=objects):
                self._replace(kind, objects)

    def _put(self, item: Object) -> None:
        match item:
            case Service():
                self._put_service(item)
            case EndpointSlice():
                self._put_slice(item)
            case Node():
                self._set_node(item)
            case ServiceCidr():
                self._put_service_cidr(item)

    def _replace(self, kind: Kind, objects: tuple[Object, ...]) -> None:
        listed = {item.name for item in objects}
        for name in self._names(kind) - listed:
            self.apply(Removed(kind, name))
        if kind is Kind.NODE and not objects:
            self._set_node(None)
        for item in objects:
            self._put(item)
        if kind is Kind.SERVICE_CIDR and not self.knows(kind):
            self._service_cidrs_changed = True  # also from nothing known to nothing there
        self._known.add(kind)

    def _names(self, kind: Kind) -> AbstractSet[NamespacedName]:
        """Return the names of all objects of a kind of which there may be several."""
        match kind:
            case Kind.SERVICE:
                return self.services.keys()
            case Kind.ENDPOINT_SLICE:
                return self._service_of_slice.keys()
            case Kind.SERVICE_CIDR:
                return self._service_cidrs.keys()
            case Kind.NODE:
                return frozenset()

    def _put_service(self, service: Service) -> None:
        if self.services.get(service.name) != service:
            self.services[service.name] = service
            self._dirty[service.name] = None

    def _remove_service(self, name: NamespacedName) -> None:
        if self.services.pop(name, None) is not None:
            self._dirty[name] = None

    def _put_slice(self, endpoint_slice: EndpointSlice) -> None:
        name, service = endpoint_slice.name, endpoint_slice.service
        if self._service_of_slice.get(name, service) != service:
            self._remove_slice(name)  # its label names another Service now
        if self._slice(service, name) != endpoint_slice:
            others = [each for each in self._slices.get(service, ()) if each.name != name]
            self._slices[service] = tuple(sorted([*others, endpoint_slice], key=_name))
            self._service_of_slice[name] = service
            self._dirty[service] = None
            if endpoint_slice.triggered_at:
                moments = self._triggers.setdefault((endpoint_slice.family, service), [])
                if len(moments) < MOST_TRIGGERS:
                    moments.append(endpoint_slice.triggered_at)

    def _remove_slice(self, name: NamespacedName) -> None:
        service = self._service_of_slice.pop(name, None)
        if service is None:
            return
        removed = self._slice(service, name)
        # As kube-proxy: the time of a slice's last change says nothing about its end.
        if removed is not None:
            self._triggers.pop((removed.family, service), None)
        slices = tuple(each for each in self._slices.pop(service) if each.name != name)
        if slices:
            self._slices[service] = slices
        self._dirty[service] = None

    def _slice(self, service: NamespacedName, name: NamespacedName) -> EndpointSlice | None:
        return next((each for each in self._slices.get(service, ()) if each.name == name), None)

    def _set_node(self, node: Node | None) -> None:
        before, self.node = self.node, node
        if (node and node.as_packets_see_it()) != (before and before.as_packets_see_it()):
            self._node_changed = True

    def _put_service_cidr(self, service_cidr: ServiceCidr) -> None:
        if self._service_cidrs.get(service_cidr.name) != service_cidr:
            self._service_cidrs[service_cidr.name] = service_cidr
            self._service_cidrs_changed = True

    def _remove_service_cidr(self, name: NamespacedName) -> None:
        if self._service_cidrs.pop(name, None) is not None:
            self._service_cidrs_changed = True
