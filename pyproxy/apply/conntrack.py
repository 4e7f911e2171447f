"""Connection tracking entries by netlink: one dump of a family's UDP entries, then deletes of just those named.

Hand-packed, because a dump may have a hundred thousand entries, and general netlink libraries build an object for each
attribute. Message and attribute numbers: `linux/netfilter/nfnetlink_conntrack.h`.
"""

import errno
import socket
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

from pyproxy.apply.netlink import (
    ATTRIBUTE,
    NETLINK_NETFILTER,
    NFGENMSG_BYTES,
    Message,
    NetlinkSocket,
    attribute,
    attributes,
    nest,
    nfgenmsg,
)
from pyproxy.errors import ApplyError
from pyproxy.model.address import Family
from pyproxy.model.flow import Flow

_CTNETLINK = 1 << 8
_GET, _DELETE = 1, 2
_PROTOCOL_FAMILIES = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}

_TUPLE_ORIG, _TUPLE_REPLY, _ID, _ZONE, _FILTER = 1, 2, 12, 18, 25
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_IP_SOURCE = {Family.IPV4: 1, Family.IPV6: 3}
_IP_DESTINATION = {Family.IPV4: 2, Family.IPV6: 4}
_PROTO_NUM, _PROTO_SOURCE_PORT, _PROTO_DESTINATION_PORT = 1, 2, 3
_FILTER_ORIG_FLAGS, _FILTER_REPLY_FLAGS = 1, 2
_FILTER_BY_PROTO_NUM = 1 << 3
_UDP = 17


class _Entry(NamedTuple):
    flow: Flow
    identity: bytes
    """The attributes that name this entry and no other: original tuple, zone and id, as the kernel sent them."""


def delete_udp_flows(family: Family, is_stale: Callable[[Flow], bool]) -> int:
    """Delete the UDP entries that a test picks, and return how many there were. Blocking; call it off the loop.

    Raises:
        ApplyError: the kernel refused to dump; entries that are gone by themselves are no error.
    """
    try:
        with NetlinkSocket(NETLINK_NETFILTER) as netlink:
            stale = [entry for entry in _dump(netlink, family) if is_stale(entry.flow)]
            refusals = netlink.send([_request(_DELETE, family, entry.identity) for entry in stale])
    except OSError as error:
        message = f"connection tracking entries of {family}: {error.strerror}"
        raise ApplyError(message, retryable=True) from error
    for refusal in refusals:
        if refusal.code != errno.ENOENT:
            message = f"connection tracking entries of {family}: {refusal.text}"
            raise ApplyError(message, retryable=True)
    return len(stale) - len(refusals)


def _dump(netlink: NetlinkSocket, family: Family) -> Iterator[_Entry]:
    # Kernels before 5.8 pass the filter over and dump everything; `_entry` picks UDP all the same.
    protocol = nest(_TUPLE_ORIG, nest(_TUPLE_PROTO, attribute(_PROTO_NUM, bytes([_UDP]))))
    flags = attribute(_FILTER_ORIG_FLAGS, struct.pack("=I", _FILTER_BY_PROTO_NUM))
    body = protocol + nest(_FILTER, flags, attribute(_FILTER_REPLY_FLAGS, struct.pack("=I", 0)))
    kind, _, request = _request(_GET, family, body)
    for data, start, end in netlink.dump(kind, request, header=NFGENMSG_BYTES):
        entry = _entry(data, start, end, family)
        if entry is not None:
            yield entry


def _request(kind: int, family: Family, body: bytes) -> Message:
    return Message(_CTNETLINK | kind, 0, nfgenmsg(_PROTOCOL_FAMILIES[family]) + body)


def _entry(data: memoryview, start: int, end: int, family: Family) -> _Entry | None:
    found = {kind: (left, right) for kind, left, right in attributes(data, start, end)}
    original = _tuple(data, *found[_TUPLE_ORIG])
    reply = _tuple(data, *found[_TUPLE_REPLY])
    if original[_TUPLE_PROTO, _PROTO_NUM] != bytes([_UDP]):
        return None
    flow = Flow(
        original[_TUPLE_IP, _IP_DESTINATION[family]],
        int.from_bytes(original[_TUPLE_PROTO, _PROTO_DESTINATION_PORT]),
        reply[_TUPLE_IP, _IP_SOURCE[family]],
        int.from_bytes(reply[_TUPLE_PROTO, _PROTO_SOURCE_PORT]),
    )
    identity = b"".join(_padded(data, *found[kind]) for kind in (_TUPLE_ORIG, _ZONE, _ID) if kind in found)
    return _Entry(flow, identity)


def _tuple(data: memoryview, start: int, end: int) -> dict[tuple[int, int], bytes]:
    return {
        (outer, inner): bytes(data[left:right])
        for outer, outer_left, outer_right in attributes(data, start, end)
        if outer in (_TUPLE_IP, _TUPLE_PROTO)
        for inner, left, right in attributes(data, outer_left, outer_right)
    }


def _padded(data: memoryview, start: int, end: int) -> bytes:
    whole = bytes(data[start - ATTRIBUTE.size : end])
    return whole + bytes(-len(whole) % 4)
