"""Deletion of UDP flows: dumps of conntrack entries by netlink, and deletes of the entries that a test selects.

The original tuple of an entry is the packet as the client sent it, to a frontend. The reply tuple has the endpoint as its
source. `linux.uapi.nfnetlink_conntrack` has the layout of the messages.

A node may have a million entries, and one change concerns a few. Since Linux 5.8 the kernel can select the entries of a dump
by destination (`CTA_FILTER`): it still walks through its whole table, but sends only what matches. For many destinations one
dump of all UDP entries is cheaper. Entries are parsed as they arrive and deleted in portions, so memory does not grow with
the table. Parsing is by hand, because general libraries build an object for each attribute.
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
    parsing,
)
from pyproxy.linux.uapi.nfnetlink import NfnlSubsys
from pyproxy.linux.uapi.nfnetlink_conntrack import Cta, CtaFilter, CtaFilterF, CtaIp, CtaProto, CtaTuple, IpctnlMsgCt
from pyproxy.model.address import Family
from pyproxy.model.flow import Destination, Flow

_IP_SOURCE = {Family.IPV4: CtaIp.V4_SRC, Family.IPV6: CtaIp.V6_SRC}
_IP_DESTINATION = {Family.IPV4: CtaIp.V4_DST, Family.IPV6: CtaIp.V6_DST}
# What a delete request repeats of an entry. The ID keeps it from deleting a newer entry with the same tuple.
_IDENTITY = (Cta.TUPLE_ORIG, Cta.ZONE, Cta.ID)
_UDP = socket.IPPROTO_UDP

# Up to so many destinations get a dump each. A dump with a filter takes a tenth of the time of one without, or less.
_MOST_FILTERS = 8
_DELETES_AT_ONCE = 1000

# Bytes from the kernel, and where an entry's attributes start and end in them.
_At = tuple[memoryview, int, int]


class Cleaned(NamedTuple):
    """The work of one call of `delete_udp_flows`."""

    examined: int
    """Entries that the kernel sent."""
    deleted: int


def delete_udp_flows(family: Family, destinations: Sequence[Destination], is_stale: Callable[[Flow], bool]) -> Cleaned:
    """Delete the UDP entries to any of the destinations for which the test returns True. Blocks; run it in a thread.

    Entries of all zones count: a zone separates connections that would otherwise be equal, and says nothing about which
    Service an address belongs to. The test may also be called for entries to other destinations.

    Raises:
        ApplyError: the kernel refused a dump or a delete. An entry that expired in the meantime is not an error.
    """
    examined = deleted = 0
    try:
        with NetlinkSocket(NETLINK_NETFILTER) as netlink, NetlinkSocket(NETLINK_NETFILTER) as deleting, parsing():
            for destination in _filters(family, destinations):
                is_filtered = True
                stale: list[Message] = []
                for flow, at in _dump(netlink, family, destination):
                    examined += 1
                    is_filtered = (
                        is_filtered
                        and destination.ip in (None, flow.destination)
                        and destination.port in (None, flow.destination_port)
                    )
                    if is_stale(flow):
                        stale.append(_request(IpctnlMsgCt.DELETE, family, _identity(*at)))
                    if len(stale) == _DELETES_AT_ONCE:
                        deleted += _delete(deleting, family, stale)
                        stale = []
                deleted += _delete(deleting, family, stale)
                if not is_filtered:
                    break  # Linux before 5.8 ignores the filter, so this dump had all entries.
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
    if family is Family.IPV6:
        # The kernel inverts the comparison of IPv6 addresses (`ctnetlink_filter_match_tuple`, in Linux 6.1 and 6.18): it
        # leaves out the entries that match. Ports are compared correctly.
        destinations = [Destination(None, destination.port) for destination in destinations]
    distinct = dict.fromkeys(destinations)
    everything = Destination(None, None)
    return (everything,) if everything in distinct or len(distinct) > _MOST_FILTERS else distinct.keys()


def _dump(netlink: NetlinkSocket, family: Family, destination: Destination) -> Iterator[tuple[Flow, _At]]:
    # The request has the wanted fields in TUPLE_ORIG, and in FILTER a bit for each field that the kernel compares.
    flags, ip, ports = CtaFilterF.PROTO_NUM.value, b"", b""
    if destination.ip is not None:
        flags |= CtaFilterF.IP_DST
        ip = nest(CtaTuple.IP, attribute(_IP_DESTINATION[family], destination.ip))
    if destination.port is not None:
        flags |= CtaFilterF.PROTO_DST_PORT
        ports = attribute(CtaProto.DST_PORT, destination.port.to_bytes(2))
    original = nest(Cta.TUPLE_ORIG, ip, nest(CtaTuple.PROTO, attribute(CtaProto.NUM, bytes([_UDP])), ports))
    # No field of the reply tuple is compared.
    compared = attribute(CtaFilter.ORIG_FLAGS, struct.pack("=I", flags))
    body = original + nest(Cta.FILTER, compared, attribute(CtaFilter.REPLY_FLAGS, struct.pack("=I", 0)))
    kind, _, request = _request(IpctnlMsgCt.GET, family, body)
    flow_of = _EntryParser(family).flow
    for at in netlink.dump(kind, request, header=NFGENMSG_BYTES):
        flow = flow_of(*at)
        if flow is not None:
            yield flow, at


def _request(kind: int, family: Family, body: bytes) -> Message:
    return Message(NfnlSubsys.CTNETLINK << 8 | kind, 0, nfgenmsg(family.socket_family) + body)


class _EntryParser:
    def __init__(self, family: Family) -> None:
        self._family = family
        size = family.bits // 8
        # Both tuples come first, and have this layout unless a tuple has a zone of its own. Checking the attribute headers
        # as constant bytes, and unpacking everything at once, spares a loop over 14 attributes.
        #   original: 12 bytes of headers, source, header, destination, 8 + 8 bytes of headers with NUM, ports
        self._layout = struct.Struct(f">12s{size}x4x{size}s8sB3x8x4xH2x12s{size}s4x{size}x8s4x4xH2x8x")
        ip_bytes = 2 * (ATTRIBUTE.size + size)
        proto_bytes = 3 * 2 * ATTRIBUTE.size
        self._heads = tuple(
            ATTRIBUTE.pack(3 * ATTRIBUTE.size + ip_bytes + proto_bytes, kind | NESTED)
            + ATTRIBUTE.pack(ATTRIBUTE.size + ip_bytes, CtaTuple.IP | NESTED)
            + ATTRIBUTE.pack(ATTRIBUTE.size + size, _IP_SOURCE[family])
            for kind in (Cta.TUPLE_ORIG, Cta.TUPLE_REPLY)
        )
        self._proto = ATTRIBUTE.pack(ATTRIBUTE.size + proto_bytes, CtaTuple.PROTO | NESTED)
        self._proto += ATTRIBUTE.pack(ATTRIBUTE.size + 1, CtaProto.NUM)

    def flow(self, data: memoryview, start: int, end: int) -> Flow | None:
        if end - start >= self._layout.size:
            original, ip, proto, number, port, reply, source, reply_proto, source_port = self._layout.unpack_from(
                data, start
            )
            if (original, reply) == self._heads and proto == reply_proto == self._proto:
                return Flow(ip, port, source, source_port) if number == _UDP else None
        # Any other layout attribute by attribute.
        found = {kind: (left, right) for kind, left, right in attributes(data, start, end)}
        original = _tuple(data, *found[Cta.TUPLE_ORIG])
        reply = _tuple(data, *found[Cta.TUPLE_REPLY])
        if original[CtaTuple.PROTO, CtaProto.NUM] != bytes([_UDP]):
            return None
        return Flow(
            original[CtaTuple.IP, _IP_DESTINATION[self._family]],
            int.from_bytes(original[CtaTuple.PROTO, CtaProto.DST_PORT]),
            reply[CtaTuple.IP, _IP_SOURCE[self._family]],
            int.from_bytes(reply[CtaTuple.PROTO, CtaProto.SRC_PORT]),
        )


def _identity(data: memoryview, start: int, end: int) -> bytes:
    # The attributes as the kernel sent them, with their headers.
    parts = [
        bytes(data[left - ATTRIBUTE.size : right])
        for kind, left, right in attributes(data, start, end)
        if kind in _IDENTITY
    ]
    return b"".join(part + bytes(-len(part) % 4) for part in parts)


def _tuple(data: memoryview, start: int, end: int) -> dict[tuple[int, int], bytes]:
    # By the types of the outer and the inner attribute. A tuple may also have a zone, which has no attributes inside.
    return {
        (outer, inner): bytes(data[left:right])
        for outer, outer_left, outer_right in attributes(data, start, end)
        if outer in (CtaTuple.IP, CtaTuple.PROTO)
        for inner, left, right in attributes(data, outer_left, outer_right)
    }
