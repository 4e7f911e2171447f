"""Messages about elements: packed elements can be parsed, and attribute lengths add up as the kernel's parser requires.

`tests.packets` tests that the kernel accepts them, for every kind of set.
"""

from collections.abc import Iterator

import pytest

from pyproxy.backends.nftables.element_format import ElementFormat
from pyproxy.backends.nftables.elements import ADDRESSED, ALLOWED_SOURCES, SETS, ElementSet, KeyField
from pyproxy.linux.netlink import HEADER, attributes
from pyproxy.linux.nf_tables_messages import BODY_AT, batch, message
from pyproxy.linux.uapi.nf_tables import NftaSetElemList
from pyproxy.model.address import Family

families = pytest.mark.parametrize("family", Family, ids=str)
kinds = pytest.mark.parametrize("kind", SETS.values(), ids=lambda kind: kind.name)
MOST_BYTES = 0xFFFF
"""The largest length that fits into an attribute header."""


def samples(kind: ElementSet, family: Family, count: int = 3) -> dict[bytes, bytes]:
    """Return elements of a set in which all bytes differ, with comments of all lengths if the set has comments."""
    key_size = kind.key_size(family) * (2 if kind.is_interval else 1)
    data_size = 0 if KeyField.VERDICT in kind.data else kind.data_size(family)
    found: dict[bytes, bytes] = {}
    for number in range(count):
        comment = b"c" * (number % 128) if kind.is_named else b""
        data = bytes((number + 7 * at) % 251 + 1 for at in range(data_size))
        found[number.to_bytes(4) + bytes(at % 251 + 1 for at in range(4, key_size))] = data + comment
    return found


def parsed(form: ElementFormat, messages: Iterator[bytes]) -> dict[bytes, bytes]:
    """Return the elements that messages contain."""
    return {
        key: value
        for each in messages
        for key, value in form.parse(memoryview(each), BODY_AT, HEADER.unpack_from(each)[0])
    }


@families
@kinds
def test_elements_come_back(kind: ElementSet, family: Family) -> None:
    """Keys, both ends of ranges, data, and comments up to the longest one are parsed from the packed message."""
    form = ElementFormat(kind, family, "table")
    expected = samples(kind, family, 128)

    assert expected == parsed(form, form.add(expected.items()))


@families
@kinds
def test_deleted_elements_are_named_by_key_alone(kind: ElementSet, family: Family) -> None:
    """A delete has neither data nor comment."""
    form = ElementFormat(kind, family, "table")
    expected = samples(kind, family)

    assert dict.fromkeys(expected, b"") == parsed(form, form.delete(expected))


def depths(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield type, start and end of the value of each attribute that the kernel's parser would see."""
    assert start == end or start + 4 <= end
    yield from attributes(memoryview(data), start, end)


@families
@kinds
def test_lengths_add_up(kind: ElementSet, family: Family) -> None:
    """Each list of attributes ends where the attribute around it ends, so the constant pieces have the right lengths."""
    form = ElementFormat(kind, family, "table")
    for each in (*form.add(samples(kind, family, 128).items()), *form.delete(samples(kind, family))):
        length, *_ = HEADER.unpack_from(each)
        assert len(each) == length
        assert length % 4 == 0
        [(start, end)] = [
            (left, right)
            for number, left, right in attributes(memoryview(each), BODY_AT, length)
            if number == NftaSetElemList.ELEMENTS
        ]
        ends = [right for _, _, right in attributes(memoryview(each), start, end)]
        starts = [left - 4 for _, left, _ in attributes(memoryview(each), start, end)]
        assert [start, *ends[:-1]] == starts
        assert end == ends[-1]
        for _, left, right in attributes(memoryview(each), start, end):
            *_, (_, _, last) = attributes(memoryview(each), left, right)
            assert last + (-last % 4) == right


@families
def test_many_elements_are_several_messages(family: Family) -> None:
    """A list never exceeds the largest attribute, and no element is lost between two messages."""
    kind = ADDRESSED.main.endpoints
    form = ElementFormat(kind, family, "table")
    expected = samples(kind, family, 5000)
    messages = list(form.add(expected.items()))

    assert len(messages) > 1
    assert max(map(len, messages)) < MOST_BYTES
    assert expected == parsed(form, iter(messages))


def test_no_elements_are_no_message() -> None:
    """Without elements there is no message."""
    form = ElementFormat(ALLOWED_SOURCES, Family.IPV4, "table")

    assert [] == [*form.add([]), *form.delete([])]


def test_only_the_last_of_a_batch_is_acknowledged() -> None:
    """Only the last message of a transaction requests an acknowledgement, and has the sequence number."""
    packed = batch([message(12, 0x400, Family.IPV4, b"body") for _ in range(3)], sequence=77)
    headers = []
    offset = 0
    while offset < len(packed):
        headers.append(HEADER.unpack_from(packed, offset))
        offset += headers[-1][0]

    assert [16, 0xA0C, 0xA0C, 0xA0C, 17] == [kind for _, kind, *_ in headers]
    assert [0x1, 0x401, 0x401, 0x405, 0x1] == [flags for _, _, flags, *_ in headers]
    assert [0, 0, 0, 77, 0] == [sequence for *_, sequence, _ in headers]
