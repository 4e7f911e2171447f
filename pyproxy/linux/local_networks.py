"""The destinations that the kernel delivers to this node itself, as `addrtype LOCAL` and `fib daddr type local` match them.

They are the routes of type "local" in the table "local" (`linux/rtnetlink.h`):

    RTM_GETROUTE  nlmsghdr, struct rtmsg, RTA_DST address, RTA_OIF u32 in the machine's order, and more attributes
    struct rtmsg  u8 each: family, prefix length of destination and of source, TOS, table, protocol, scope, type; u32 flags

These are not the same as the addresses of interfaces: 127.0.0.0/8 is local as a whole, `ip route add local` makes other
ranges local, and an interface that is down keeps its IPv4 addresses but not their local routes.
"""

import errno
import socket
import struct
import sys

from pyproxy.errors import ApplyError
from pyproxy.linux.addresses import IPVS_DEVICE
from pyproxy.linux.netlink import NetlinkSocket, attributes
from pyproxy.linux.uapi.rtnetlink import Rta, Rtm, Rtn, RtTable
from pyproxy.model.address import Family, Network

_RTMSG = struct.Struct("=BBBBBBBBI")


def local_networks(family: Family) -> frozenset[Network]:
    """Return what is local to this network namespace, without the addresses of Services in IPVS mode. Blocks briefly.

    Raises:
        ApplyError: the kernel refused; a later call may succeed.
    """
    try:
        ipvs_device = socket.if_nametoindex(IPVS_DEVICE)
    except OSError:
        ipvs_device = 0  # no interface has this index
    body = _RTMSG.pack(family.socket_family, 0, 0, 0, RtTable.LOCAL, 0, 0, Rtn.LOCAL, 0)
    found: set[Network] = set()
    try:
        with NetlinkSocket(socket.NETLINK_ROUTE) as netlink:
            for data, start, end in netlink.dump_whole(Rtm.GETROUTE, body, header=_RTMSG.size):
                _, prefix, _, _, table, _, _, kind, _ = _RTMSG.unpack_from(data, start - _RTMSG.size)
                values = {key: bytes(data[left:right]) for key, left, right in attributes(data, start, end)}
                device = int.from_bytes(values.get(Rta.OIF, b""), sys.byteorder)
                # Linux before 4.20 ignores the table in the request and dumps all of them.
                if (table, kind) == (RtTable.LOCAL, Rtn.LOCAL) and (not ipvs_device or device != ipvs_device):
                    found.add(Network(values.get(Rta.DST, bytes(family.bits // 8)), prefix))
    except OSError as error:
        if error.errno == errno.ENOENT:  # This namespace never had a route of this family.
            return frozenset()
        message = f"the addresses of this node cannot be read: {error.strerror}"
        raise ApplyError(message, retryable=True) from error
    return frozenset(found)
