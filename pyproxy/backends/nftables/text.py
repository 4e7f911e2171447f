"""Elements and tables as ``nft`` reads and prints them."""

from collections.abc import Iterable, Mapping

from pyproxy.backends.nftables.elements import LAYOUT, SETS, ElementKey, ElementSet, KeyField, Value, unpack_number
from pyproxy.backends.nftables.layout import TABLE, numbered_chain
from pyproxy.model.address import Family, ip_text
from pyproxy.model.names import Protocol

_PROTOCOL_NAMES = {protocol.number: protocol.value for protocol in Protocol}


def family_name(family: Family) -> str:
    """Return the family as ``nft`` calls it."""
    return "ip" if family is Family.IPV4 else "ip6"


def table_text(family: Family, layout: str, entries: Mapping[ElementKey, Value]) -> str:
    """Return a whole table: the layout, and the elements of all entries."""
    chains = "".join(
        numbered_chain(SETS[key[0]], unpack_number(key[1:]), family).text
        for key in sorted(entries)
        if key != LAYOUT and SETS[key[0]].leads_to_chains
    )
    name = f"{family_name(family)} {TABLE}"
    elements = [f"add element {name} {kind} {{ {item} }}\n" for kind, item in elements_text(family, entries)]
    return f"table {name} {{\n{layout}{chains}}}\n" + "".join(elements)


def elements_text(family: Family, entries: Mapping[ElementKey, Value]) -> Iterable[tuple[str, str]]:
    """Yield the set and the text of each element, sorted."""
    for key in sorted(entries):
        value = entries[key]
        if key == LAYOUT or not isinstance(value, bytes):
            continue
        kind = SETS[key[0]]
        yield kind.name, element_text(kind, key[1:], value, family)


def element_text(kind: ElementSet, key: bytes, value: bytes, family: Family) -> str:
    """Return one element: key, comment and data."""
    size = kind.key_size(family)
    fields = _fields(kind.key, key[:size], family)
    if kind.is_interval:
        ends = _fields(kind.key, key[size:], family)
        fields = [first if first == last else f"{first}-{last}" for first, last in zip(fields, ends, strict=True)]
    data_size = kind.data_size(family)
    comment = f' comment "{value[data_size:].decode()}"' if len(value) > data_size else ""
    if kind.leads_to_chains:
        chain = numbered_chain(kind, unpack_number(key), family)
        return f"{fields[0]} : {chain.verdict} {chain.name}"
    data = f" : {' . '.join(_fields(kind.data, value, family))}" if kind.data else ""
    return f"{' . '.join(fields)}{comment}{data}"


def _fields(fields: tuple[KeyField, ...], data: bytes, family: Family) -> list[str]:
    found = []
    offset = 0
    for field in fields:
        size = field.size(family)
        found.append(_field(field, data[offset : offset + size]))
        offset += size
    return found


def _field(field: KeyField, data: bytes) -> str:
    match field:
        case KeyField.ADDRESS:
            return ip_text(data)
        case KeyField.PROTOCOL:
            return _PROTOCOL_NAMES.get(data[0], str(data[0]))
        case KeyField.PORT:
            return str(int.from_bytes(data[:2]))
        case _:
            number = unpack_number(data)
            return f"{number >> 16:x}:{number & 0xFFFF:x}"
