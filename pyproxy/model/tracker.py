"""Keeps the last known objects of the cluster, and the names of the Services that must be planned again.

It plans nothing. A change is remembered until it is taken, and the order in which changes of different objects arrive does
not matter.
"""

from collections.abc import Set as AbstractSet
from operator import attrgetter

from pyproxy.model.address import Family, Network
from pyproxy.model.change import Kind, Object, ObjectChange, Put, Removed, Replaced, Unserved
from pyproxy.model.endpoint import EndpointSlice
from pyproxy.model.names import NamespacedName
from pyproxy.model.node import Node
from pyproxy.model.service import Service
from pyproxy.model.service_cidr import ServiceCidr
from pyproxy.model.unserved import UnservedService

Triggers = dict[tuple[Family, NamespacedName], list[float]]
"""By family and Service, the times of the changes that led to new versions of slices, in seconds since 1970."""
MOST_TRIGGERS = 100
"""Times kept for one Service, the first ones: there is no limit to how many changes arrive before a sync."""
_name = attrgetter("name")


class Tracker:
    """The last known objects, and the names of the Services that changed since they were last taken."""

    def __init__(self) -> None:
        self.services: dict[NamespacedName, Service] = {}
        self.unserved: dict[NamespacedName, UnservedService] = {}
        """Services without rules; an invalid one may have a last good version among `services`."""
        self.node: Node | None = None
        # By Service, sorted by name. A Service has few slices, so a tuple is enough.
        self._slices: dict[NamespacedName, tuple[EndpointSlice, ...]] = {}
        self._service_of_slice: dict[NamespacedName, NamespacedName] = {}
        # A dict in place of a set, because it keeps the order: `take_dirty` says why that matters.
        self._dirty: dict[NamespacedName, None] = {}
        self._triggers: Triggers = {}
        self._known: set[Kind] = set()
        self._node_changed = False
        self._service_cidrs: dict[NamespacedName, ServiceCidr] = {}
        self._service_cidrs_changed = False

    def __repr__(self) -> str:
        return f"Tracker({len(self.services)} services, {len(self._service_of_slice)} slices, {len(self._dirty)} dirty)"

    def knows(self, *kinds: Kind) -> bool:
        """Return whether a complete list of each of these kinds has arrived. Before that no rule may be written."""
        return self._known.issuperset(kinds)

    @property
    def pending(self) -> bool:
        """Return whether there are changes that were not taken yet."""
        return bool(self._dirty) or self._node_changed or self._service_cidrs_changed

    def is_dirty(self, service: NamespacedName) -> bool:
        """Return whether a Service, or the Node, has changed since the changes were last taken."""
        return self._node_changed or service in self._dirty

    def slices(self, service: NamespacedName) -> tuple[EndpointSlice, ...]:
        """Return the slices of a Service, sorted by name."""
        return self._slices.get(service, ())

    def orphans(self) -> tuple[EndpointSlice, ...]:
        """Return the slices of Services that do not exist."""
        # A headless Service has slices as well, which DNS reads. It is among the unserved ones, so these are not orphans.
        missing = self._slices.keys() - self.services.keys() - self.unserved.keys()
        return tuple(each for service in sorted(missing) for each in self._slices[service])

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
        """Return the names of Services whose Service or slices changed since the last call.

        They are in the order of the changes, which is the order of the objects in memory: planning many Services at the
        start is faster in that order.
        """
        dirty, self._dirty = self._dirty, {}
        return dirty.keys()

    def take_triggers(self) -> Triggers:
        """Return the times of the changes that led to new versions of slices since the last call."""
        triggers, self._triggers = self._triggers, {}
        return triggers

    def take_node_changed(self) -> bool:
        """Return whether the Node changed since the last call: every plan depends on it."""
        changed, self._node_changed = self._node_changed, False
        return changed

    @property
    def service_cidrs(self) -> tuple[ServiceCidr, ...] | None:
        """All ServiceCIDRs; None before the first complete list."""
        return tuple(self._service_cidrs.values()) if self.knows(Kind.SERVICE_CIDR) else None

    def take_service_cidrs(self) -> tuple[Network, ...] | None:
        """Return the ranges of all ServiceCIDRs, sorted, and mark them as taken; None before the first complete list.

        No plan depends on them.
        """
        self._service_cidrs_changed = False
        if not self.knows(Kind.SERVICE_CIDR):
            return None
        return tuple(sorted({network for each in self._service_cidrs.values() for network in each.cidrs}))

    def apply(self, change: ObjectChange) -> None:
        """Apply one change. An object that equals the known one, as in a resync, does not make its Service dirty."""
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
                if self._service_cidrs.pop(name, None) is not None:
                    self._service_cidrs_changed = True
            case Replaced(kind=kind, objects=objects, unserved=unserved):
                self._replace(kind, objects)
                for service in unserved:
                    self._put_unserved(service)
            case Unserved(service=service):
                self._put_unserved(service)

    def _put(self, item: Object) -> None:
        match item:
            case Service():
                # A corrected object, or one that has a cluster IP now, is no longer without rules.
                self.unserved.pop(item.name, None)
                if self.services.get(item.name) != item:
                    self.services[item.name] = item
                    self._dirty[item.name] = None
            case EndpointSlice():
                self._put_slice(item)
            case Node():
                self._set_node(item)
            case ServiceCidr():
                if self._service_cidrs.get(item.name) != item:
                    self._service_cidrs[item.name] = item
                    self._service_cidrs_changed = True

    def _replace(self, kind: Kind, objects: tuple[Object, ...]) -> None:
        known: AbstractSet[NamespacedName] = frozenset()
        match kind:
            case Kind.SERVICE:
                known = self.services.keys() | self.unserved.keys()
            case Kind.ENDPOINT_SLICE:
                known = self._service_of_slice.keys()
            case Kind.SERVICE_CIDR:
                known = self._service_cidrs.keys()
            case Kind.NODE:
                # Only this node is watched, so a list without it means that it was deleted.
                if not objects:
                    self._set_node(None)
        # A watch that could not be resumed may have missed deletions: what the list does not have is gone.
        for name in known - {item.name for item in objects}:
            self.apply(Removed(kind, name))
        for item in objects:
            self._put(item)
        if kind is Kind.SERVICE_CIDR and not self.knows(kind):
            self._service_cidrs_changed = True  # an empty list differs from no list
        self._known.add(kind)

    def _remove_service(self, name: NamespacedName) -> None:
        self.unserved.pop(name, None)
        if self.services.pop(name, None) is not None:
            self._dirty[name] = None

    def _put_unserved(self, service: UnservedService) -> None:
        # An invalid object keeps its last good version: its rules stay until it is corrected or deleted.
        if service.kind is not None:
            self._remove_service(service.name)
        self.unserved[service.name] = service

    def _put_slice(self, endpoint_slice: EndpointSlice) -> None:
        name, service = endpoint_slice.name, endpoint_slice.service
        if self._service_of_slice.get(name, service) != service:
            self._remove_slice(name)  # its label now names another Service
        if self._slice(service, name) != endpoint_slice:
            others = [each for each in self._slices.get(service, ()) if each.name != name]
            self._slices[service] = tuple(sorted([*others, endpoint_slice], key=_name))
            self._service_of_slice[name] = service
            self._dirty[service] = None
            if endpoint_slice.triggered_at:
                # Per family, because each family is synced by itself.
                moments = self._triggers.setdefault((endpoint_slice.family, service), [])
                if len(moments) < MOST_TRIGGERS:
                    moments.append(endpoint_slice.triggered_at)

    def _remove_slice(self, name: NamespacedName) -> None:
        service = self._service_of_slice.pop(name, None)
        if service is None:
            return
        removed = self._slice(service, name)
        # As in kube-proxy: the trigger time of a slice's last version is not the time of its deletion.
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
        # The kubelet updates the status at least every five minutes, and a change makes every Service dirty.
        if (node and node.as_packets_see_it()) != (before and before.as_packets_see_it()):
            self._node_changed = True
