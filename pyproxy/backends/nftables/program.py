"""A Service port's plan as elements of sets and maps, and all elements of one family together.

Nearly every element begins with what packets are addressed to, which no two ports share, because `claims`
has made sure of it. The few that ports share (a cluster IP, a hairpin connection, a count) are counted.
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

_LONGEST_COMMENT = 127
"""``nft`` takes no longer one, and names may be."""
_CUT = "..."


class NftablesProgram:
    """What the nftables mode wants in the kernel for one family: layout and elements, from all plans. Pure."""

    def __init__(self, settings: NftablesSettings) -> None:
        node_ips = settings.node_port_ips or ()
        self._static: dict[ElementKey, Value] = {
            LAYOUT: layout_of(settings),
            **{element(NODE_PORT_IPS, ip): b"" for ip in node_ips},
            **{element(SERVICE_CIDRS, _every_protocol(*ends)): b"" for ends in _ranges(settings.service_cidrs or ())},
        }
        self._keeps_service_cidrs = settings.service_cidrs is None
        self._own: dict[ElementKey, bytes] = {}
        self._plans: dict[ServicePortName, ServicePlan] = {}
        self._waiting: dict[ElementKey, dict[ServicePortName, bytes]] = {}
        """Elements that pass from one port to others, until the one that has them lets go."""
        self._shared: dict[ElementKey, int] = {}
        """How many ports want an element."""

    def put(self, name: ServicePortName, plan: ServicePlan | None) -> set[ElementKey]:
        """Take in the plan of a port (None: it is gone) and return the elements that changed."""
        before = self._plans.pop(name, None)
        if plan is not None:
            self._plans[name] = plan
        if before == plan:
            return set()
        # Compiled once more rather than kept: that is microseconds for a change, and megabytes for all ports.
        own_before, shared_before = _compiled(before)
        own, shared = _compiled(plan)
        changed = self._put_own(name, own_before, own)
        changed.update(self._put_shared(shared_before, shared))
        return changed

    def value(self, key: ElementKey) -> Value | None:
        """Return data and comment of an element, or None if it should not be there."""
        own = self._own.get(key)
        if own is not None:
            return own
        if key in self._shared or (self._keeps_service_cidrs and key[0] == SERVICE_CIDRS.number):
            return b""
        return self._static.get(key)

    def keys(self) -> Iterator[ElementKey]:
        """Yield the layout and every element that should be there."""
        yield from self._static
        yield from self._shared
        yield from self._own

    def _put_own(
        self, name: ServicePortName, before: Collection[ElementKey], elements: dict[ElementKey, bytes]
    ) -> set[ElementKey]:
        if not before and self._own.keys().isdisjoint(elements):
            self._own |= elements
            return set(elements)
        changed: set[ElementKey] = set()
        for key in before:
            if key not in elements:
                changed.add(key)
                self._release(key, name)
        for key, value in elements.items():
            if self._is_anothers(key, name, before):
                self._waiting.setdefault(key, {})[name] = value
            elif self._own.get(key) != value:
                self._own[key] = value
            else:
                continue
            changed.add(key)
        return changed

    def _is_anothers(self, key: ElementKey, name: ServicePortName, known: Collection[ElementKey]) -> bool:
        if key in known:
            return name in self._waiting.get(key, ())
        return key in self._own

    def _release(self, key: ElementKey, name: ServicePortName) -> None:
        waiting = self._waiting.get(key)
        if waiting is None:
            del self._own[key]
            return
        if name in waiting:
            del waiting[name]
        else:
            self._own[key] = waiting.pop(next(iter(waiting)))
        if not waiting:
            del self._waiting[key]

    def _put_shared(self, before: Collection[ElementKey], keys: Collection[ElementKey]) -> Collection[ElementKey]:
        for key in keys:
            self._shared[key] = self._shared.get(key, 0) + 1
        for key in before:
            self._shared[key] -= 1
            if not self._shared[key]:
                del self._shared[key]
        return (*before, *keys)


class PortElements:
    """The elements of one Service port."""

    def __init__(self, plan: ServicePlan) -> None:
        self.own: dict[ElementKey, bytes] = {}
        """Elements that no other port has."""
        self.shared: dict[ElementKey, None] = {}
        """Elements of sets that other ports may have, too."""
        self._plan = plan
        self._name = _comment(plan.name)
        self._protocol = pack_protocol(plan.protocol)
        at_port = self._protocol + pack_port(plan.port)
        if plan.cluster_ip is not None:
            self.shared[element(CLUSTER_IPS, plan.cluster_ip)] = None
            self._internal(plan.cluster_ip + at_port)
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

    def _internal(self, key: bytes) -> None:
        plan = self._plan
        self._choose(ADDRESSED, ADDRESSED.main, key, plan.internal_endpoints)
        self._refuse(ADDRESSED, key, plan.internal_verdict)

    def _external(self, sets: PortSets, key: bytes) -> None:
        plan = self._plan
        self._add(sets.external_local if plan.external_local else sets.external_cluster, key)
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
            # A node that sends to the address may have it as source, where the address is bound to the node.
            own = [Network(ip, len(ip) * 8)] if plan.allow_load_balancer_ips_as_source else []
            for first, last in _ranges((*plan.source_ranges, *own)):
                self._add(ALLOWED_SOURCES, key + first + key + last)


def _compiled(plan: ServicePlan | None) -> tuple[dict[ElementKey, bytes], Collection[ElementKey]]:
    """Return a port's own elements, and those that others may have, too."""
    if plan is None:
        return {}, ()
    elements = PortElements(plan)
    return elements.own, elements.shared


def element(kind: ElementSet, key: bytes) -> ElementKey:
    """Return the key of an entry for an element of a set."""
    return ElementKey(kind.prefix + key)


@lru_cache(maxsize=256)
def _pick(count: int) -> ElementKey:
    return element(PICK, pack_number(count))


def _every_protocol(first: bytes, last: bytes) -> bytes:
    return first + bytes(4) + last + bytes((255, 0, 0, 0))


def _comment(name: ServicePortName) -> bytes:
    text = str(name)
    if len(text) > _LONGEST_COMMENT:
        text = text[: _LONGEST_COMMENT - len(_CUT)] + _CUT
    return text.encode()


def _with_ids(owner: bytes, targets: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield ids with endpoints: the same for an endpoint whatever others there are, unless two collide.

    Two Service ports may give the same id to an endpoint of each. A client of both is then with that one in both.
    """
    taken: set[int] = set()
    for target in targets:
        number = crc32(owner + target) | ID_BIT
        while number in taken:
            number = (number + 1) & 0xFFFFFFFF | ID_BIT
        taken.add(number)
        yield number, target


def _ranges(blocks: Iterable[Network]) -> Iterator[tuple[bytes, bytes]]:
    """Yield first and last address of each range; the kernel takes none that overlap."""
    for block in collapse_addresses([ip_network((block.ip, block.prefix)) for block in blocks]):  # type: ignore[type-var]  # of one family
        yield block.network_address.packed, block.broadcast_address.packed
