"""Sizes and bytes of the elements of the nftables mode. `tests.packets` compares them with those of the kernel."""

import pytest

from pyproxy.backends.nftables.elements import (
    ADDRESSED,
    ALLOWED_SOURCES,
    HAIRPIN,
    ID_BIT,
    LAYOUT,
    PICK,
    PINS,
    SETS,
    ElementSet,
    pack_number,
    pack_port,
    pack_protocol,
    unpack_number,
)
from pyproxy.model.address import Family
from pyproxy.model.names import Protocol


@pytest.mark.parametrize(
    ("kind", "family", "key", "data"),
    [
        (HAIRPIN, Family.IPV4, 4 + 4 + 4 + 4, 0),
        (HAIRPIN, Family.IPV6, 16 + 16 + 4 + 4, 0),
        (ALLOWED_SOURCES, Family.IPV4, 4 + 4 + 4 + 4, 0),
        (PICK, Family.IPV6, 4, 4),
        (ADDRESSED.main.endpoints, Family.IPV4, 4 + 4 + 4 + 4, 4 + 4),
        (ADDRESSED.main.endpoints, Family.IPV6, 16 + 4 + 4 + 4, 16 + 4),
        (ADDRESSED.main.slots, Family.IPV6, 16 + 4 + 4 + 4, 4),
    ],
)
def test_fields_are_filled_up_to_four_bytes(kind: ElementSet, family: Family, key: int, data: int) -> None:
    """In a concatenation, ports of two bytes and protocols of one byte take four bytes."""
    assert (key, data) == (kind.key_size(family), kind.data_size(family))


@pytest.mark.parametrize("family", Family, ids=str)
def test_keys_fit_into_the_kernels_registers(family: Family) -> None:
    """A key has at most 64 bytes (NFT_DATA_VALUE_MAXLEN); the kernel refuses longer ones."""
    assert [] == [kind.name for kind in (*SETS.values(), PINS) if kind.key_size(family) > 64]


def test_sets_are_distinct() -> None:
    """Each set has its own name, and its own number, which fits into one byte and is not that of the layout."""
    names = [kind.name for kind in (*SETS.values(), PINS)]

    assert len(names) == len(set(names))
    assert all(LAYOUT[0] < number < 256 for number in SETS)
    assert PINS.number not in SETS


@pytest.mark.parametrize("number", [0, 1, 80, 0x10000, ID_BIT, 0xFFFFFFFF])
def test_numbers_come_back(number: int) -> None:
    """Unpacking a number reads four bytes, whatever follows them."""
    assert 4 == len(pack_number(number))
    assert number == unpack_number(pack_number(number) + b"more")


def test_ports_and_protocols_are_in_network_order() -> None:
    """Ports and protocols are in network byte order, as in a packet, and padded with zeros."""
    assert (b"\x1f\x90\0\0", b"\x84\0\0\0") == (pack_port(8080), pack_protocol(Protocol.SCTP))
