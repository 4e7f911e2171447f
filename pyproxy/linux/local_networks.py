"""Which destinations the kernel delivers to this node itself, as `addrtype LOCAL` and `fib daddr type local` see it.

More than the addresses of interfaces: 127.0.0.0/8 as a whole, and what `ip route add local` says; and less, as an
interface that is down keeps its IPv4 addresses.
"""

import errno
import socket
import struct
import sys

from pyproxy.errors import ApplyError
from pyproxy.linux.addresses import IPVS_DEVICE
from pyproxy.linux.netlink import NetlinkSocket, attributes
from pyproxy.model.address import Family, Network

# linux/rtnetlink.h
_RTM_GETROUTE = 26
_RTMSG = struct.Struct("=BBBBBBBBI")
"""Family, length of destination and source, tos, table, protocol, scope, type, flags."""
_TABLE_LOCAL, _TYPE_LOCAL = 255, 2
_DESTINATION, _OUT_INTERFACE = 1, 4
_FAMILIES = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}


def local_networks(family: Family) -> frozenset[Network]:
    """Return what is local to this network namespace, but for the addresses of Services in IPVS mode. Blocking.

    Raises:
        ApplyError: the kernel refused, for now.
    """
    try:
        services = socket.if_nametoindex(IPVS_DEVICE)
    except OSError:
        services = 0
    body = _RTMSG.pack(_FAMILIES[family], 0, 0, 0, _TABLE_LOCAL, 0, 0, _TYPE_LOCAL, 0)
    found: set[Network] = set()
    try:
        with NetlinkSocket(socket.NETLINK_ROUTE) as netlink:
            for data, start, end in netlink.dump_whole(_RTM_GETROUTE, body, header=_RTMSG.size):
                _, prefix, _, _, table, _, _, kind, _ = _RTMSG.unpack_from(data, start - _RTMSG.size)
                values = {key: bytes(data[left:right]) for key, left, right in attributes(data, start, end)}
                device = int.from_bytes(values.get(_OUT_INTERFACE, b""), sys.byteorder)
                # Kernels before 4.20 dump every table.
                if (table, kind) == (_TABLE_LOCAL, _TYPE_LOCAL) and (not services or device != services):
                    found.add(Network(values.get(_DESTINATION, bytes(family.bits // 8)), prefix))
    except OSError as error:
        if error.errno == errno.ENOENT:  # no route of this family was ever made
            return frozenset()
        message = f"the addresses of this node cannot be read: {error.strerror}"
        raise ApplyError(message, retryable=True) from error
    return frozenset(found)
