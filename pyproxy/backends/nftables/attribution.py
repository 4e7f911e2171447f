"""Finds the Service port of each element, from the elements alone.

Elements of a plan and elements read from the kernel pass through the same code, so that a difference between two listings is
a difference of elements. Most keys begin with a frontend: address, protocol and port, or a node port. One element of each
frontend has the name of the Service port as its comment; the frontend leads to the remaining ones.
"""

from collections.abc import Mapping
from types import MappingProxyType

from pyproxy.backends.listing import ListedRule, RuleListing
from pyproxy.backends.nftables.elements import (
    ADDRESSED,
    ALLOWED_SOURCES,
    FIREWALL,
    LAYOUT,
    NODE_PORTS,
    SETS,
    ElementKey,
    KeyField,
    Layout,
    Value,
)
from pyproxy.backends.nftables.layout import TABLE
from pyproxy.backends.nftables.text import element_text, family_name
from pyproxy.model.address import Family
from pyproxy.model.names import NamespacedName, Protocol, ServicePortName

_PROTOCOLS = {protocol.number: protocol for protocol in Protocol}


def _addressed_keys() -> dict[int, tuple[KeyField, ...]]:
    found = {kind.number: ADDRESSED.timeouts.key for kind in (FIREWALL, ALLOWED_SOURCES)}
    for sets in (ADDRESSED, NODE_PORTS):
        kinds = [sets.external_cluster, sets.external_local, sets.timeouts, sets.rejected, sets.dropped]
        for choice in (sets.main, sets.local):
            kinds += [choice.counts, choice.endpoints, choice.slots]
        found |= {kind.number: sets.timeouts.key for kind in kinds}
    return found


_ADDRESSED_KEYS = _addressed_keys()
"""For each set whose elements belong to one Service port: the fields of the frontend with which their keys begin."""


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


def _owners(family: Family, entries: Mapping[ElementKey, Value]) -> dict[bytes, ServicePortName]:
    found: dict[bytes, ServicePortName] = {}
    for key, value in entries.items():
        kind = SETS.get(key[0])
        if kind is not None and kind.is_named and isinstance(value, bytes):
            comment = value[kind.data_size(family) :].decode(errors="replace")
            addressed = _addressed(key, family)
            # The protocol is the field before the port, of 4 bytes each. An element that was added externally may have one that
            # no Service has.
            if addressed is not None and comment and (protocol := _PROTOCOLS.get(addressed[-8])):
                # NAMESPACE/NAME:PORT
                service, _, port = comment.partition(":")
                namespace, _, name = service.partition("/")
                found[addressed] = ServicePortName(NamespacedName(namespace, name), port, protocol)
    return found


def _addressed(key: ElementKey, family: Family) -> bytes | None:
    """Return the frontend with which the key begins; None if the element does not belong to one."""
    fields = _ADDRESSED_KEYS.get(key[0])
    return key[1 : 1 + sum(field.size(family) for field in fields)] if fields else None


def _table(family: Family) -> str:
    return f"{family_name(family)} {TABLE}"
