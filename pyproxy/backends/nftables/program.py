"""Turns plans into elements: those of one Service port, and those of all Service ports of a family.

The key of nearly every element begins with a frontend, which belongs to one Service port only; `pyproxy.plan.claims` settles
conflicts. These are the own elements of a Service port. The few elements that several Service ports use (a cluster IP, a
hairpin connection, a count) are shared: they exist while at least one Service port uses them.
"""

from collections.abc import Collection, Iterable, Iterator
from functools import lru_cache
from ipaddress import collapse_addresses, ip_network
from typing import cast
from zlib import crc32

from pyproxy.backends.nftables.elements import (
    ADDRESSED,
    ALLOWED_SOURCES,
    CLUSTER_IPS,
    FIREWALL,
    HAIRPIN,
    ID_BIT,
    LAYOUT,
    NODE_PORT_IPS,
    NODE_PORTS,
    PICK,
    SERVICE_CIDRS,
    ElementKey,
    ElementSet,
    EndpointChoice,
    PortSets,
    Value,
    pack_number,
    pack_port,
    pack_protocol,
    pack_slots,
)
from pyproxy.backends.nftables.layout import NftablesSettings, layout_of
from pyproxy.model.address import Network
from pyproxy.model.endpoint import Endpoint
from pyproxy.model.names import ServicePortName
from pyproxy.plan.service_plan import ServicePlan, Verdict

_LONGEST_COMMENT = 127  # longest comment that ``nft`` accepts; the name of a Service port can be longer
_CUT = "..."
_EVERY_PROTOCOL = bytes(4), bytes((255, 0, 0, 0))  # first and last value of the field protocol, with padding


class NftablesProgram:
    """The layout and elements that all plans of one family need; implements `backends.interface.Program`. Pure."""

    def __init__(self, settings: NftablesSettings) -> None:
        lowest, highest = _EVERY_PROTOCOL
        self._static: dict[ElementKey, Value] = {LAYOUT: layout_of(settings)}
        for ip in settings.node_port_ips or ():
            self._static[element(NODE_PORT_IPS, ip)] = b""
        for first, last in _ranges(settings.service_cidrs or ()):
            self._static[element(SERVICE_CIDRS, first + lowest + last + highest)] = b""
        self._keeps_service_cidrs = settings.service_cidrs is None
        self._own: dict[ElementKey, bytes] = {}
        self._plans: dict[ServicePortName, ServicePlan] = {}
        # Elements that a Service port wants while another one still has them, which happens when a frontend moves.
        self._waiting: dict[ElementKey, dict[ServicePortName, bytes]] = {}
        self._shared: dict[ElementKey, int] = {}  # for each shared element, how many Service ports use it

    def put(self, name: ServicePortName, plan: ServicePlan | None) -> set[ElementKey]:
        """Replace the plan of a Service port (None: it no longer exists) and return the keys of the elements that changed."""
        before = self._plans.pop(name, None)
        if plan is not None:
            self._plans[name] = plan
        if before == plan:
            return set()
        # The old elements are computed again, because storing them would take megabytes for all Service ports, and computing
        # them takes microseconds for one.
        own_before, shared_before = _compiled(before)
        own, shared = _compiled(plan)
        changed = self._put_own(name, own_before, own)
        for key in shared:
            self._shared[key] = self._shared.get(key, 0) + 1
        for key in shared_before:
            self._shared[key] -= 1
            if not self._shared[key]:
                del self._shared[key]
        changed.update(shared_before, shared)
        return changed

    def value(self, key: ElementKey) -> Value | None:
        """Return the wanted value of an element, or None if it should not exist."""
        own = self._own.get(key)
        if own is not None:
            return own
        if key in self._shared or (self._keeps_service_cidrs and key[0] == SERVICE_CIDRS.number):
            return b""
        return self._static.get(key)

    def keys(self) -> Iterator[ElementKey]:
        """Yield the keys of the layout and of every element that should exist."""
        yield from self._static
        yield from self._shared
        yield from self._own

    def _put_own(
        self, name: ServicePortName, before: Collection[ElementKey], elements: dict[ElementKey, bytes]
    ) -> set[ElementKey]:
        # Two Service ports may exchange a frontend, and are put one after the other: the second one waits for the
        # element.
        if not before and self._own.keys().isdisjoint(elements):
            self._own |= elements
            return set(elements)
        changed: set[ElementKey] = set()
        for key in before:
            if key in elements:
                continue
            changed.add(key)
            # The element goes to the next Service port that waits for it, or is deleted.
            waiting = self._waiting.get(key)
            if waiting is None:
                del self._own[key]
                continue
            if name in waiting:
                del waiting[name]
            else:
                self._own[key] = waiting.pop(next(iter(waiting)))
            if not waiting:
                del self._waiting[key]
        for key, value in elements.items():
            has_other_owner = name in self._waiting.get(key, ()) if key in before else key in self._own
            if has_other_owner:
                self._waiting.setdefault(key, {})[name] = value
            elif self._own.get(key) != value:
                self._own[key] = value
            else:
                continue
            changed.add(key)
        return changed


class PortElements:
    """The elements of one Service port, computed from its plan."""

    def __init__(self, plan: ServicePlan) -> None:
        self.own: dict[ElementKey, bytes] = {}
        """Elements that no other Service port has."""
        self.shared: dict[ElementKey, None] = {}
        """Elements that other Service ports may also have; a dictionary because it keeps the order."""
        self._plan = plan
        name = str(plan.name)
        if len(name) > _LONGEST_COMMENT:
            name = name[: _LONGEST_COMMENT - len(_CUT)] + _CUT
        self._name = name.encode()
        self._protocol = pack_protocol(plan.protocol)
        at_port = self._protocol + pack_port(plan.port)
        if plan.cluster_ip is not None:
            self.shared[element(CLUSTER_IPS, plan.cluster_ip)] = None
            key = plan.cluster_ip + at_port
            self._choose(ADDRESSED, ADDRESSED.main, key, plan.internal_endpoints)
            self._refuse(ADDRESSED, key, plan.internal_verdict)
        # A map has one element for each key, so an address that is in two lists of the Service is added once.
        for ip in dict.fromkeys((*plan.external_ips, *plan.load_balancer_ips)):
            if ip != plan.cluster_ip:
                self._external(ADDRESSED, ip + at_port)
        if plan.node_port:
            self._external(NODE_PORTS, self._protocol + pack_port(plan.node_port))
        if plan.has_firewall:
            self._firewall(at_port)
        for endpoint in plan.node_endpoints:
            self.shared[element(HAIRPIN, endpoint.ip * 2 + self._protocol + pack_port(endpoint.port))] = None

    def _add(self, kind: ElementSet, key: bytes, data: bytes = b"") -> None:
        self.own[element(kind, key)] = data + self._name if kind.is_named else data

    def _external(self, sets: PortSets, key: bytes) -> None:
        plan = self._plan
        self._add(sets.external_local if plan.external_local else sets.external_cluster, key)
        # Under policy Local, pods and the node still use all endpoints.
        self._choose(sets, sets.main, key, plan.cluster_endpoints)
        if plan.external_local:
            self._choose(sets, sets.local, key, plan.local_endpoints)
        self._refuse(sets, key, plan.external_verdict)

    def _refuse(self, sets: PortSets, key: bytes, verdict: Verdict) -> None:
        if verdict is not Verdict.FORWARD:
            self._add(sets.rejected if verdict is Verdict.REJECT else sets.dropped, key)

    def _choose(self, sets: PortSets, choice: EndpointChoice, key: bytes, endpoints: tuple[Endpoint, ...]) -> None:
        if not endpoints:
            return
        plan = self._plan
        count = len(endpoints)
        self._add(choice.counts, key, pack_number(count))
        targets = [endpoint.ip + pack_port(endpoint.port) for endpoint in endpoints]
        if plan.affinity_seconds is None:
            self.shared[_pick(count)] = None
            prefix = choice.endpoints.prefix + key
            # By `dict` and `zip` instead of `_add`, which a Service with many endpoints would call once for each of them.
            self.own |= cast(
                "dict[ElementKey, bytes]",
                dict(zip([prefix + slot for slot in pack_slots(count)], targets, strict=True)),
            )
            return
        self._add(sets.timeouts, key, pack_number(plan.affinity_seconds))
        self.shared[element(choice.sticky, pack_number(plan.affinity_seconds))] = None
        self.shared[element(choice.find, pack_number(count))] = None
        for slot, (number, target) in enumerate(_with_ids(self._protocol + str(plan.name).encode(), targets)):
            self._add(choice.slots, key + pack_number(slot), pack_number(number))
            self._add(choice.endpoints, key + pack_number(number), target)

    def _firewall(self, at_port: bytes) -> None:
        plan = self._plan
        for ip in plan.load_balancer_ips:
            key = ip + at_port
            self._add(FIREWALL, key)
            # Where the address is bound to the node, packets from the node to the address also have it as their source.
            own = [Network(ip, len(ip) * 8)] if plan.allow_load_balancer_ips_as_source else []
            for first, last in _ranges((*plan.source_ranges, *own)):
                self._add(ALLOWED_SOURCES, key + first + key + last)


def _compiled(plan: ServicePlan | None) -> tuple[dict[ElementKey, bytes], Collection[ElementKey]]:
    if plan is None:
        return {}, ()
    elements = PortElements(plan)
    return elements.own, elements.shared


def element(kind: ElementSet, key: bytes) -> ElementKey:
    """Return the entry key of an element of a set."""
    return ElementKey(kind.prefix + key)


@lru_cache(maxsize=256)
def _pick(count: int) -> ElementKey:
    return element(PICK, pack_number(count))


def _with_ids(owner: bytes, targets: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    # IDs are hashes over Service port and endpoint, so an endpoint has the same ID on all nodes and after a restart,
    # whatever other endpoints there are, unless two of them collide. If endpoints of two Service ports have equal IDs,
    # a client that uses both Services is pinned in both by one pin.
    taken: set[int] = set()
    for target in targets:
        number = crc32(owner + target) | ID_BIT
        while number in taken:
            number = (number + 1) & 0xFFFFFFFF | ID_BIT
        taken.add(number)
        yield number, target


def _ranges(blocks: Iterable[Network]) -> Iterator[tuple[bytes, bytes]]:
    # Ranges that overlap are joined, because the kernel refuses them.
    for block in collapse_addresses([ip_network((block.ip, block.prefix)) for block in blocks]):  # type: ignore[type-var]  # of one family
        yield block.network_address.packed, block.broadcast_address.packed
