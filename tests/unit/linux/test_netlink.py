"""Messages and attributes of netlink, and the answers to many messages in a separate network namespace."""

import errno
import socket
import struct

import pytest

from pyproxy.linux.netlink import (
    CREATE,
    HEADER,
    Message,
    NetlinkSocket,
    attribute,
    attributes,
    error_code,
    error_text,
    nest,
    read_messages,
    text_attribute,
)
from pyproxy.linux.uapi.netlink import NlaF, NlmsgerrAttr
from pyproxy.linux.uapi.rtnetlink import Rta, Rtm, Rtn, Rtprot, RtScope, RtTable
from tests.packets.own_namespace import own_namespace

_RTMSG = struct.Struct("=BBBBBBBBI")
_MANY = 1000
"""More messages than go into one send."""


def read_attributes(packed: bytes) -> list[tuple[int, bytes]]:
    """Return type and value of each attribute."""
    view = memoryview(packed)
    return [(kind, bytes(view[start:end])) for kind, start, end in attributes(view, 0, len(view))]


@pytest.mark.parametrize("size", range(9))
def test_attributes_are_padded(size: int) -> None:
    """An attribute takes a multiple of four bytes, and its value is read without the padding."""
    packed = attribute(7, b"x" * size) + attribute(8, b"next")

    assert 0 == len(packed) % 4
    assert [(7, b"x" * size), (8, b"next")] == read_attributes(packed)


def test_flags_of_types_are_removed() -> None:
    """A nested attribute is read with its type only, and its value holds the attributes inside."""
    [(kind, value)] = read_attributes(nest(3, text_attribute(1, "a"), attribute(2 | NlaF.NET_BYTEORDER, b"\0\0\0\1")))

    assert 3 == kind
    assert [(1, b"a\0"), (2, b"\0\0\0\1")] == read_attributes(value)


def test_messages_in_one_buffer() -> None:
    """Messages begin at multiples of four bytes, whatever their length."""
    first = HEADER.pack(HEADER.size + 5, 20, 2, 11, 0) + b"12345" + bytes(3)
    second = HEADER.pack(HEADER.size, 21, 0, 12, 0)

    assert [(20, 2, 11, 16, 21), (21, 0, 12, 40, 40)] == list(read_messages(first + second))


@pytest.mark.parametrize(("packed", "size"), [(b"\0\0\1\0", 4), (b"\3\0\1\0", 4), (b"\x09\0\1\0abcd", 8)])
def test_length_of_an_attribute_that_is_not_possible(packed: bytes, size: int) -> None:
    """A length that would never end the loop, or that is beyond the end, is an error of the socket."""
    with pytest.raises(OSError, match="cannot be parsed"):
        list(attributes(memoryview(packed), 0, size))


@pytest.mark.parametrize("length", [0, HEADER.size - 1, HEADER.size + 1])
def test_length_of_a_message_that_is_not_possible(length: int) -> None:
    """The same for messages."""
    with pytest.raises(OSError, match="cannot be parsed"):
        list(read_messages(HEADER.pack(length, 20, 0, 1, 0)))


@pytest.mark.parametrize("code", [0, 1, -(1 << 31), -4096])
def test_error_without_a_text(code: int) -> None:
    """A number without a text of the system is shown as a number."""
    body = memoryview(struct.pack("=i", code))

    assert f"error {-code}" == error_text(body, 0, len(body), error_code(body, 0))


@pytest.mark.parametrize(
    ("code", "rest", "text"),
    [
        (errno.EEXIST, b"", "File exists"),
        (errno.EINVAL, text_attribute(NlmsgerrAttr.MSG, "no such hook"), "Invalid argument (no such hook)"),
        (4100, b"", "error 4100"),
    ],
)
def test_error(code: int, rest: bytes, text: str) -> None:
    """An error has the text of its errno, with the kernel's explanation if there is one; other codes are numbers."""
    body = struct.pack("=i", -code) + bytes(HEADER.size) + rest

    assert code == error_code(body, 0)
    assert text == error_text(memoryview(body), 0, len(body), code)


@pytest.mark.usefixtures("needs_root")
def test_many_messages() -> None:
    """Each refusal has the index of its message, also after the first portion; all other messages are performed."""

    def route(kind: int, flags: int, number: int) -> Message:
        # A local route over the loopback device, which is the first one.
        body = _RTMSG.pack(socket.AF_INET, 32, 0, 0, RtTable.LOCAL, Rtprot.STATIC, RtScope.HOST, Rtn.LOCAL, 0)
        body += attribute(Rta.DST, b"\xc6\x33" + number.to_bytes(2)) + attribute(Rta.OIF, struct.pack("=I", 1))
        return Message(kind, flags, body)

    with own_namespace(), NetlinkSocket(socket.NETLINK_ROUTE) as netlink:
        bring_loopback_up(netlink)
        added = [route(Rtm.NEWROUTE, CREATE, number) for number in range(0, _MANY, 2)]
        deleted = [route(Rtm.DELROUTE, 0, number) for number in range(_MANY)]

        assert [] == netlink.send(added)
        assert list(range(1, _MANY, 2)) == [refusal.at for refusal in netlink.send(deleted)]


def bring_loopback_up(netlink: NetlinkSocket) -> None:
    """Bring up the device with index 1 (struct ifinfomsg: family, type, index, flags, mask)."""
    up = 1
    assert [] == netlink.send([Message(Rtm.NEWLINK, 0, struct.pack("=BxHiII", 0, 0, 1, up, up))])


def test_closed_after_the_block() -> None:
    """The end of a with block closes the socket."""
    with NetlinkSocket(socket.NETLINK_ROUTE) as netlink:
        assert netlink.port

    with pytest.raises(OSError, match="Bad file descriptor"):
        netlink.send([Message(Rtm.GETROUTE, 0, b"")])
