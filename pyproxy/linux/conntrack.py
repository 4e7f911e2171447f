"""Connection tracking entries by netlink: dumps of UDP entries, and deletes of just those that are picked.

A node may have a million entries, and one change concerns a few. From Linux 5.8 on the kernel filters a dump by
destination (`CTA_FILTER`, `linux/netfilter/nfnetlink_conntrack.h`), which costs it a walk over its table and us
nothing. Many destinations are looked for in one dump of all UDP entries. Both are read as they come and deleted in
portions, so memory does not grow with the table. Hand-packed: general libraries build an object for each attribute.
"""

import errno
import socket
import struct
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

from pyproxy.errors import ApplyError
from pyproxy.linux.netlink import (
    ATTRIBUTE,
    NESTED,
    NETLINK_NETFILTER,
    NFGENMSG_BYTES,
    Message,
    NetlinkSocket,
    attribute,
    attributes,
    nest,
    nfgenmsg,
)
from pyproxy.model.address import Family
from pyproxy.model.flow import Destination, Flow

_CTNETLINK = 1 << 8
_GET, _DELETE = 1, 2
_PROTOCOL_FAMILIES = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}

_TUPLE_ORIG, _TUPLE_REPLY, _ID, _ZONE, _FILTER = 1, 2, 12, 18, 25
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_IP_SOURCE = {Family.IPV4: 1, Family.IPV6: 3}
_IP_DESTINATION = {Family.IPV4: 2, Family.IPV6: 4}
_PROTO_NUM, _PROTO_SOURCE_PORT, _PROTO_DESTINATION_PORT = 1, 2, 3
_FILTER_ORIG_FLAGS, _FILTER_REPLY_FLAGS = 1, 2
# What of the original tuple a filter compares: `ctnetlink_filter` in `net/netfilter/nf_conntrack_netlink.c`.
_BY_IP_DESTINATION, _BY_PROTO_NUM, _BY_DESTINATION_PORT = 1 << 1, 1 << 3, 1 << 5
_UDP = 17

_MOST_FILTERS = 8
"""Destinations that get a dump each. One with a filter takes a tenth of the time of one without, or less."""
_DELETES_AT_ONCE = 1000

_At = tuple[memoryview, int, int]
"""Bytes of the kernel, and start and end of an entry's attributes in them."""


class Cleaned(NamedTuple):
    """What a walk through connection tracking did."""

    examined: int
    """Entries that the kernel sent us."""
    deleted: int


def delete_udp_flows(family: Family, destinations: Sequence[Destination], is_stale: Callable[[Flow], bool]) -> Cleaned:
    """Delete the UDP entries that a test picks among those with some destinations. Blocking; call it off the loop.

    Entries of all zones count: a zone tells connections apart, it does not change whose address a Service's is.

    Raises:
        ApplyError: the kernel refused to dump; entries that are gone by themselves are no error.
    """
    examined = deleted = 0
    try:
        with NetlinkSocket(NETLINK_NETFILTER) as netlink, NetlinkSocket(NETLINK_NETFILTER) as deleting:
            for destination in _filters(family, destinations):
                is_filtered = True
                stale: list[Message] = []
                for flow, at in _dump(netlink, family, destination):
                    examined += 1
                    is_filtered = is_filtered and _has(flow, destination)
                    if is_stale(flow):
                        stale.append(_request(_DELETE, family, _identity(*at)))
                    if len(stale) == _DELETES_AT_ONCE:
                        deleted += _delete(deleting, family, stale)
                        stale = []
                deleted += _delete(deleting, family, stale)
                if not is_filtered:
                    break  # Linux before 5.8 passes the filter over: that was everything
    except OSError as error:
        message = f"connection tracking entries of {family}: {error.strerror}"
        raise ApplyError(message, retryable=True) from error
    return Cleaned(examined, deleted)


def _delete(netlink: NetlinkSocket, family: Family, requests: Sequence[Message]) -> int:
    refusals = netlink.send(requests)
    for refusal in refusals:
        if refusal.code != errno.ENOENT:
            message = f"connection tracking entries of {family}: {refusal.text}"
            raise ApplyError(message, retryable=True)
    return len(requests) - len(refusals)


def _filters(family: Family, destinations: Sequence[Destination]) -> Collection[Destination]:
    """Return what to ask the kernel for, so that the answers hold all entries with these destinations."""
    if family is Family.IPV6:
        # The kernel compares IPv6 addresses the wrong way round (`ctnetlink_filter_match_tuple`, seen in Linux 6.18):
        # it leaves out those that match. Ports are right.
        destinations = [Destination(None, destination.port) for destination in destinations]
    distinct = dict.fromkeys(destinations)
    everything = Destination(None, None)
    return (everything,) if everything in distinct or len(distinct) > _MOST_FILTERS else distinct.keys()


def _has(flow: Flow, destination: Destination) -> bool:
    return destination.ip in (None, flow.destination) and destination.port in (None, flow.destination_port)


def _dump(netlink: NetlinkSocket, family: Family, destination: Destination) -> Iterator[tuple[Flow, _At]]:
    flags, ip, ports = _BY_PROTO_NUM, b"", b""
    if destination.ip is not None:
        flags |= _BY_IP_DESTINATION
        ip = nest(_TUPLE_IP, attribute(_IP_DESTINATION[family], destination.ip))
    if destination.port is not None:
        flags |= _BY_DESTINATION_PORT
        ports = attribute(_PROTO_DESTINATION_PORT, destination.port.to_bytes(2))
    original = nest(_TUPLE_ORIG, ip, nest(_TUPLE_PROTO, attribute(_PROTO_NUM, bytes([_UDP])), ports))
    compared = attribute(_FILTER_ORIG_FLAGS, struct.pack("=I", flags))
    body = original + nest(_FILTER, compared, attribute(_FILTER_REPLY_FLAGS, struct.pack("=I", 0)))
    kind, _, request = _request(_GET, family, body)
    flow_of = _Reader(family).flow
    for at in netlink.dump(kind, request, header=NFGENMSG_BYTES):
        flow = flow_of(*at)
        if flow is not None:
            yield flow, at


def _request(kind: int, family: Family, body: bytes) -> Message:
    return Message(_CTNETLINK | kind, 0, nfgenmsg(_PROTOCOL_FAMILIES[family]) + body)


class _Reader:
    """Reads the flow of an entry of one family."""

    def __init__(self, family: Family) -> None:
        self._family = family
        size = family.bits // 8
        # Both tuples stand first, in this layout unless one has a zone of its own:
        # tuple { ip { source, destination }, proto { number, source port, destination port } }
        self._layout = struct.Struct(f">12s{size}x4x{size}s8sB3x8x4xH2x12s{size}s4x{size}x8s4x4xH2x8x")
        ip_bytes = 2 * (ATTRIBUTE.size + size)
        proto_bytes = 3 * 2 * ATTRIBUTE.size
        self._heads = tuple(
            ATTRIBUTE.pack(3 * ATTRIBUTE.size + ip_bytes + proto_bytes, kind | NESTED)
            + ATTRIBUTE.pack(ATTRIBUTE.size + ip_bytes, _TUPLE_IP | NESTED)
            + ATTRIBUTE.pack(ATTRIBUTE.size + size, _IP_SOURCE[family])
            for kind in (_TUPLE_ORIG, _TUPLE_REPLY)
        )
        self._proto = ATTRIBUTE.pack(ATTRIBUTE.size + proto_bytes, _TUPLE_PROTO | NESTED)
        self._proto += ATTRIBUTE.pack(ATTRIBUTE.size + 1, _PROTO_NUM)

    def flow(self, data: memoryview, start: int, end: int) -> Flow | None:
        """Return the flow of an entry; None if it is not UDP."""
        if end - start >= self._layout.size:
            original, ip, proto, number, port, reply, source, reply_proto, source_port = self._layout.unpack_from(
                data, start
            )
            if (original, reply) == self._heads and proto == reply_proto == self._proto:
                return Flow(ip, port, source, source_port) if number == _UDP else None
        return self._unusual_flow(data, start, end)

    def _unusual_flow(self, data: memoryview, start: int, end: int) -> Flow | None:
        found = {kind: (left, right) for kind, left, right in attributes(data, start, end)}
        original = _tuple(data, *found[_TUPLE_ORIG])
        reply = _tuple(data, *found[_TUPLE_REPLY])
        if original[_TUPLE_PROTO, _PROTO_NUM] != bytes([_UDP]):
            return None
        return Flow(
            original[_TUPLE_IP, _IP_DESTINATION[self._family]],
            int.from_bytes(original[_TUPLE_PROTO, _PROTO_DESTINATION_PORT]),
            reply[_TUPLE_IP, _IP_SOURCE[self._family]],
            int.from_bytes(reply[_TUPLE_PROTO, _PROTO_SOURCE_PORT]),
        )


def _identity(data: memoryview, start: int, end: int) -> bytes:
    """Return the attributes that name this entry and no other: original tuple, zone and id, as the kernel sent them."""
    named = (_TUPLE_ORIG, _ZONE, _ID)
    return b"".join(_padded(data, left, right) for kind, left, right in attributes(data, start, end) if kind in named)


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
