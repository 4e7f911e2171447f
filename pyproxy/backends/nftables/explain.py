"""What the table of the nftables mode does to the first packet of a connection, from its elements.

The chains and rules are fixed (`layout`), so they are code here, in the same order and with the same names; everything that
depends on Services is looked up in the elements. Rules of other tables are not known.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction

from pyproxy.backends.explanation import Fate, Host, Packet, Path, Step, merged
from pyproxy.backends.nftables.elements import (
    ADDRESSED,
    ALLOWED_SOURCES,
    CLUSTER_IPS,
    FIREWALL,
    HAIRPIN,
    LAYOUT,
    NODE_PORT_IPS,
    NODE_PORTS,
    SERVICE_CIDRS,
    SETS,
    ElementKey,
    ElementSet,
    EndpointChoice,
    Layout,
    PortSets,
    Value,
    pack_number,
    pack_port,
    pack_protocol,
    unpack_number,
)
from pyproxy.backends.nftables.layout import NftablesSettings
from pyproxy.backends.nftables.text import element_text
from pyproxy.model.address import is_loopback
from pyproxy.model.endpoint import Endpoint
from pyproxy.model.names import Protocol

_PRE_DNAT, _NAT, _FILTER, _SOURCE_NAT = -110, -100, 0, 100


@dataclass(frozen=True, slots=True)
class Elements:
    """The elements of one family's table, by set."""

    settings: NftablesSettings
    entries: Mapping[ElementKey, Value]
    ranges: Mapping[bytes, tuple[list[bytes], list[bytes]]]
    """For each frontend with a firewall: the first and the last address of each allowed range, sorted."""

    def value(self, kind: ElementSet, key: bytes) -> bytes | None:
        """Return the data of an element, or None if it does not exist."""
        value = self.entries.get(ElementKey(kind.prefix + key))
        return None if value is None or isinstance(value, Layout) else value

    def step(self, hook: str, priority: int, kind: ElementSet, key: bytes) -> Step:
        """Return the step at which an element was found."""
        value = self.value(kind, key) or b""
        return Step(hook, priority, kind.name, element_text(kind, key, value, self.settings.family))


def read_elements(entries: Mapping[ElementKey, Value], settings: NftablesSettings) -> Elements:
    """Return the elements of a table, from a program or from the kernel."""
    size, ip = ALLOWED_SOURCES.key_size(settings.family), settings.family.bits // 8
    found: dict[bytes, list[tuple[bytes, bytes]]] = {}
    for key in entries:
        if key != LAYOUT and SETS.get(key[0]) is ALLOWED_SOURCES:
            body = key[1:]
            found.setdefault(body[: size - ip], []).append((body[size - ip : size], body[2 * size - ip :]))
    ranges = {
        frontend: ([first for first, _ in sorted(pairs)], [last for _, last in sorted(pairs)])
        for frontend, pairs in found.items()
    }
    return Elements(settings, entries, ranges)


@dataclass(frozen=True, slots=True)
class _State:
    packet: Packet
    host: Host
    destination: bytes
    port: int
    share: Fraction = Fraction(1)
    is_marked: bool = False
    is_translated: bool = False
    is_masqueraded: bool = False
    affinity_seconds: int | None = None
    steps: tuple[Step, ...] = ()

    @property
    def node_port(self) -> bytes:
        return pack_protocol(self.packet.protocol) + pack_port(self.port)

    @property
    def addressed(self) -> bytes:
        return self.destination + self.node_port

    def after(self, step: Step, **changes: object) -> "_State":
        return replace(self, steps=(*self.steps, step), **changes)  # type: ignore[arg-type]  # fields of this class


def paths(elements: Elements, packet: Packet, host: Host) -> tuple[Path, ...]:
    """Return every way that a packet of a new client can take, the most probable first."""
    state = _State(packet, host, packet.destination, packet.port)
    return merged(_Walk(elements).walk(state))


class _Walk:
    def __init__(self, elements: Elements) -> None:
        self._elements = elements
        self._settings = elements.settings

    def walk(self, state: _State) -> Iterator[Path]:
        hook = "prerouting" if state.packet.in_interface else "output"
        if dropped := self._sources(state, hook):
            yield _ended(dropped, Fate.DROPPED)
            return
        for translated in self._services(state, hook):
            yield self._filtered(translated)

    def _sources(self, state: _State, hook: str) -> _State | None:
        """Return the state of a packet that the chain ``sources`` drops, or None."""
        key = state.addressed
        if self._elements.value(FIREWALL, key) is None:
            return None
        firsts, lasts = self._elements.ranges.get(key, ([], []))
        index = bisect_right(firsts, state.packet.source) - 1
        if index >= 0 and state.packet.source <= lasts[index]:
            return None
        return state.after(self._elements.step(hook, _PRE_DNAT, FIREWALL, key))

    def _services(self, state: _State, hook: str) -> Iterator[_State]:
        """Follow the chain ``services``: addresses of Services, then node ports."""
        for end in self._ports(state, hook, ADDRESSED, state.addressed):
            if not end.is_translated and self._is_to_node(end):
                yield from self._ports(end, hook, NODE_PORTS, end.node_port)
            else:
                yield end

    def _ports(self, state: _State, hook: str, sets: PortSets, key: bytes) -> Iterator[_State]:
        elements, settings = self._elements, self._settings
        if sets is ADDRESSED and elements.value(CLUSTER_IPS, state.destination) is not None:
            from_elsewhere = settings.local_traffic is not None and not self._is_from_pod(state)
            if settings.masquerade_all or from_elsewhere:
                step = elements.step(hook, _NAT, CLUSTER_IPS, state.destination)
                state = state.after(step, is_marked=True)
        choice = sets.main
        if elements.value(sets.external_local, key) is not None:
            state = state.after(elements.step(hook, _NAT, sets.external_local, key))
            if settings.local_traffic is not None and self._is_from_pod(state):
                pass
            elif state.host.is_local(state.packet.source):
                state = replace(state, is_marked=True)
            else:
                choice = sets.local
        elif elements.value(sets.external_cluster, key) is not None:
            state = state.after(elements.step(hook, _NAT, sets.external_cluster, key), is_marked=True)
        yield from self._choose(state, hook, sets, choice, key)

    def _choose(self, state: _State, hook: str, sets: PortSets, choice: EndpointChoice, key: bytes) -> Iterator[_State]:
        elements = self._elements
        packed = elements.value(choice.counts, key)
        if packed is None:
            yield state
            return
        count = unpack_number(packed)
        state = state.after(elements.step(hook, _NAT, choice.counts, key))
        timeout = elements.value(sets.timeouts, key)
        if timeout is not None:
            seconds = unpack_number(timeout)
            state = state.after(elements.step(hook, _NAT, sets.timeouts, key), affinity_seconds=seconds)
        for slot in range(count):
            number = pack_number(slot)
            if timeout is not None:
                number = (elements.value(choice.slots, key + number) or number)[:4]
            target = elements.value(choice.endpoints, key + number)
            one = replace(state, share=state.share / count)
            if target is None:
                yield one
                continue
            size = len(state.destination)
            step = elements.step(hook, _NAT, choice.endpoints, key + number)
            yield one.after(
                step,
                destination=target[:size],
                port=int.from_bytes(target[size : size + 2]),
                is_translated=True,
            )

    def _is_from_pod(self, state: _State) -> bool:
        traffic = self._settings.local_traffic
        if traffic is None:
            return False
        if traffic.cidr is not None:
            return state.packet.source in traffic.cidr
        if traffic.interface:
            return state.packet.in_interface == traffic.interface
        return state.packet.in_interface.startswith(traffic.interface_prefix)

    def _is_to_node(self, state: _State) -> bool:
        if self._settings.node_port_ips is not None:
            return self._elements.value(NODE_PORT_IPS, state.destination) is not None
        return state.host.is_local(state.destination) and not is_loopback(state.destination)

    def _filtered(self, state: _State) -> Path:
        """Follow the base chains after routing."""
        is_local = state.host.is_local(state.destination)
        if state.packet.in_interface and is_local:
            return self._input(state)
        hook = "forward" if state.packet.in_interface else "output"
        refused = self._refusals(state, hook, ADDRESSED, state.addressed) or self._unknown_ports(state, hook)
        if refused:
            return refused
        state = self._postrouting(state)
        if not is_local:
            return _ended(state, Fate.FORWARDED)
        if dropped := self._sources(state, "prerouting"):  # it enters by lo
            return _ended(dropped, Fate.DROPPED)
        return self._input(state)

    def _input(self, state: _State) -> Path:
        refused = None
        if self._is_to_node(state):
            refused = self._refusals(state, "input", NODE_PORTS, state.node_port)
        refused = refused or self._refusals(state, "input", ADDRESSED, state.addressed)
        if refused:
            return refused
        is_sctp = state.packet.protocol is Protocol.SCTP
        if self._settings.relays_localhost and is_sctp and is_loopback(state.destination):
            for kind in (NODE_PORTS.external_cluster, NODE_PORTS.external_local):
                if self._elements.value(kind, state.node_port) is not None:
                    step = self._elements.step("input", _FILTER, kind, state.node_port)
                    return _ended(state.after(step), Fate.REJECTED)
        return _ended(state, Fate.FORWARDED)

    def _refusals(self, state: _State, hook: str, sets: PortSets, key: bytes) -> Path | None:
        for kind, fate in ((sets.rejected, Fate.REJECTED), (sets.dropped, Fate.DROPPED)):
            if self._elements.value(kind, key) is not None:
                return _ended(state.after(self._elements.step(hook, _FILTER, kind, key)), fate)
        return None

    def _unknown_ports(self, state: _State, hook: str) -> Path | None:
        if self._elements.value(CLUSTER_IPS, state.destination) is not None:
            step = self._elements.step(hook, _FILTER, CLUSTER_IPS, state.destination)
            return _ended(state.after(step), Fate.REJECTED)
        for block in self._settings.service_cidrs or ():
            if state.destination in block:
                step = Step(hook, _FILTER, SERVICE_CIDRS.name, str(block))
                return _ended(state.after(step), Fate.DROPPED)
        return None

    def _postrouting(self, state: _State) -> _State:
        if state.is_marked:
            step = Step("postrouting", _SOURCE_NAT, "nat-postrouting", "meta mark: masquerade fully-random")
            return state.after(step, is_masqueraded=True)
        key = state.packet.source + state.addressed
        if state.is_translated and self._elements.value(HAIRPIN, key) is not None:
            return state.after(self._elements.step("postrouting", _SOURCE_NAT, HAIRPIN, key), is_masqueraded=True)
        return state


def _ended(state: _State, fate: Fate) -> Path:
    if fate is not Fate.FORWARDED:
        return Path(state.share, fate, state.steps)
    return Path(
        state.share,
        Fate.FORWARDED if state.is_translated else Fate.UNCHANGED,
        state.steps,
        Endpoint(state.destination, state.port) if state.is_translated else None,
        is_masqueraded=state.is_masqueraded,
        affinity_seconds=state.affinity_seconds,
    )
