"""Finds the Service port of each element, from the elements alone.

Elements of a plan and elements read from the kernel pass through the same code, so that a difference between two listings is
a difference of elements. Most keys begin with a frontend: address, protocol and port, or a node port. One element of each
frontend has the name of the Service port as its comment; the frontend leads to the remaining ones.
"""

from collections.abc import Collection, Iterator, Mapping
from types import MappingProxyType

from pyproxy.backends.listing import ListedRule, RuleListing
from pyproxy.backends.nftables.elements import (
    ADDRESSED,
    ALLOWED_SOURCES,
    CHAINED,
    CLUSTER_IPS,
    ENDPOINTS,
    FIREWALL,
    HAIRPIN,
    LAYOUT,
    NODE_PORTS,
    PICK,
    SETS,
    ElementKey,
    KeyField,
    Layout,
    Value,
)
from pyproxy.backends.nftables.layout import TABLE
from pyproxy.backends.nftables.text import element_text, family_name
from pyproxy.model.address import Family
from pyproxy.model.names import PROTOCOLS, NamespacedName, ServicePortName


def _addressed_keys() -> dict[int, tuple[KeyField, ...]]:
    found = {kind.number: ADDRESSED.timeouts.key for kind in (FIREWALL, ALLOWED_SOURCES)}
    for sets in (ADDRESSED, NODE_PORTS):
        kinds = [sets.external_cluster, sets.external_local, sets.timeouts, sets.rejected, sets.dropped]
        for choice in (sets.main, sets.local):
            kinds += [choice.counts, choice.endpoints, choice.slots]
        found |= {kind.number: sets.timeouts.key for kind in kinds}
    return found


# For each set whose elements belong to one Service port: the fields of the frontend with which their keys begin.
_ADDRESSED_KEYS = _addressed_keys()


# Numbers of the sets whose elements several Service ports may share.
_SHARED = CHAINED | {CLUSTER_IPS.number, HAIRPIN.number}


# For each map of counts: the sets that it belongs to.
_CHOICES = {
    choice.counts.number: (sets, choice) for sets in (ADDRESSED, NODE_PORTS) for choice in (sets.main, sets.local)
}


def list_elements(
    family: Family, entries: Mapping[ElementKey, Value], also: Mapping[ElementKey, Value] = MappingProxyType({})
) -> RuleListing:
    """Return elements grouped by the Service port that they belong to.

    Args:
        family: of the elements.
        entries: the elements to list.
        also: other elements, not listed. Their names of Service ports are used for frontends without a name of their own.
    """
    owners = _owners(family, also) | _owners(family, entries)
    common: list[ListedRule] = []
    services: dict[ServicePortName, list[ListedRule]] = {}
    for key in sorted(entries):
        value = entries[key]
        if isinstance(value, Layout):
            common.append(
                ListedRule(_table(family), LAYOUT[1:].decode(), f"layout {value.version or 'changed externally'}")
            )
            continue
        kind = SETS[key[0]]
        rule = ListedRule(_table(family), kind.name, f"{kind.name} {{ {element_text(kind, key[1:], value, family)} }}")
        owner = owners.get(_addressed(key, family) or b"")
        (services.setdefault(owner, []) if owner else common).append(rule)
    return RuleListing(
        family, common=tuple(common), services={name: tuple(services[name]) for name in sorted(services)}
    )


def users(family: Family, keys: Collection[ElementKey], entries: Mapping[ElementKey, Value]) -> list[ServicePortName]:
    """Return the Service ports that share some elements, such as their cluster IP or a number of endpoints, sorted.

    Args:
        family: of the elements.
        keys: the elements to look for; own elements of Service ports are ignored. If all Service ports need one of them, such
            as the layout, nothing is returned.
        entries: all elements.
    """
    shared = {key for key in keys if key[0] in _SHARED}
    if not shared or any(key[0] not in _SHARED and key[0] not in _ADDRESSED_KEYS for key in keys):
        return []
    owners = _owners(family, entries)
    found: set[ServicePortName] = set()
    for key, value in entries.items():
        addressed = _addressed(key, family)
        owner = owners.get(addressed) if addressed else None
        if owner is None or addressed is None or not isinstance(value, bytes) or owner in found:
            continue
        if not shared.isdisjoint(_shared_keys(family, key, value, addressed, entries)):
            found.add(owner)
    return sorted(found)


def _shared_keys(
    family: Family, key: ElementKey, value: bytes, addressed: bytes, entries: Mapping[ElementKey, Value]
) -> Iterator[ElementKey]:
    # Yield the shared elements that an element of a Service port needs.
    number = key[0]
    address_bytes = KeyField.ADDRESS.size(family)
    if number in _CHOICES:
        sets, choice = _CHOICES[number]
        if sets is ADDRESSED:
            yield ElementKey(CLUSTER_IPS.prefix + addressed[:address_bytes])
        timeout = entries.get(ElementKey(sets.timeouts.prefix + addressed))
        yield ElementKey((PICK if timeout is None else choice.find).prefix + value[:4])
        if isinstance(timeout, bytes):
            yield ElementKey(choice.sticky.prefix + timeout[:4])
    elif number in (ADDRESSED.rejected.number, ADDRESSED.dropped.number):
        yield ElementKey(CLUSTER_IPS.prefix + addressed[:address_bytes])
    elif number in ENDPOINTS:
        protocol, ip, port = addressed[-8:-4], value[:address_bytes], value[address_bytes:]
        yield ElementKey(HAIRPIN.prefix + ip * 2 + protocol + port)


def _owners(family: Family, entries: Mapping[ElementKey, Value]) -> dict[bytes, ServicePortName]:
    found: dict[bytes, ServicePortName] = {}
    for key, value in entries.items():
        kind = SETS.get(key[0])
        if kind is not None and kind.is_named and isinstance(value, bytes):
            comment = value[kind.data_size(family) :].decode(errors="replace")
            addressed = _addressed(key, family)
            # The protocol is the field before the port, of 4 bytes each. An element that was added externally may have one that
            # no Service has.
            if addressed is not None and comment and (protocol := PROTOCOLS.get(addressed[-8])):
                # NAMESPACE/NAME:PORT
                service, _, port = comment.partition(":")
                namespace, _, name = service.partition("/")
                found[addressed] = ServicePortName(NamespacedName(namespace, name), port, protocol)
    return found


def _addressed(key: ElementKey, family: Family) -> bytes | None:
    fields = _ADDRESSED_KEYS.get(key[0])
    return key[1 : 1 + sum(field.size(family) for field in fields)] if fields else None


def _table(family: Family) -> str:
    return f"{family_name(family)} {TABLE}"
