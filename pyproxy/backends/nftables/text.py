"""Elements and tables in the language of ``nft``.

Elements reach the kernel as text only where a whole table is written; the text is also what ``dump-rules`` prints.
"""

from collections.abc import Iterable, Mapping

from pyproxy.backends.nftables.elements import LAYOUT, SETS, ElementKey, ElementSet, KeyField, Value, unpack_number
from pyproxy.backends.nftables.layout import TABLE, numbered_chain
from pyproxy.model.address import Family, ip_text
from pyproxy.model.names import PROTOCOLS


def family_name(family: Family) -> str:
    """Return nft's name of the family."""
    return "ip" if family is Family.IPV4 else "ip6"


def table_text(family: Family, layout: str, entries: Mapping[ElementKey, Value]) -> str:
    """Return a script that adds a table: the layout, the chains of numbers in use, and the elements of all entries."""
    chains = "".join(
        numbered_chain(SETS[key[0]], unpack_number(key[1:]), family).text
        for key in sorted(entries)
        if key != LAYOUT and SETS[key[0]].leads_to_chains
    )
    name = f"{family_name(family)} {TABLE}"
    elements = [f"add element {name} {kind} {{ {item} }}\n" for kind, item in elements_text(family, entries)]
    return f"table {name} {{\n{layout}{chains}}}\n" + "".join(elements)


def elements_text(family: Family, entries: Mapping[ElementKey, Value]) -> Iterable[tuple[str, str]]:
    """Yield set and text of each element, sorted by key."""
    for key in sorted(entries):
        value = entries[key]
        if key == LAYOUT or not isinstance(value, bytes):
            continue
        kind = SETS[key[0]]
        yield kind.name, element_text(kind, key[1:], value, family)


def element_text(kind: ElementSet, key: bytes, value: bytes, family: Family) -> str:
    """Return one element as text: key, comment and data."""
    size = kind.key_size(family)
    # The key of a range has both ends, one after the other; nft writes FIRST-LAST for each field.
    fields = _fields(kind.key, key[:size], family)
    if kind.is_interval:
        ends = _fields(kind.key, key[size:], family)
        fields = [first if first == last else f"{first}-{last}" for first, last in zip(fields, ends, strict=True)]
    data_size = kind.data_size(family)
    # A comment that was written externally need not be UTF-8.
    comment = f' comment "{value[data_size:].decode(errors="replace")}"' if len(value) > data_size else ""
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
        value = data[offset : offset + size]
        offset += size
        match field:
            case KeyField.ADDRESS:
                found.append(ip_text(value))
            case KeyField.PROTOCOL:
                found.append(PROTOCOLS[value[0]].value if value[0] in PROTOCOLS else str(value[0]))
            case KeyField.PORT:
                found.append(str(int.from_bytes(value[:2])))
            case _:
                # nft prints the type classid as MAJOR:MINOR, two hexadecimal numbers of 16 bits.
                number = unpack_number(value)
                found.append(f"{number >> 16:x}:{number & 0xFFFF:x}")
    return found
