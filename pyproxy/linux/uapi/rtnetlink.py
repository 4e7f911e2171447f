"""`linux/rtnetlink.h`: links, addresses and routes."""

import struct
from enum import IntEnum

# struct ifinfomsg: u8 family, padding, u16 device type, i32 index, u32 flags, u32 mask of the flags to change
IFINFOMSG = struct.Struct("=BxHiII")
# struct rtmsg: u8 each: family, prefix length of destination and of source, TOS, table, protocol, scope, type; u32 flags
RTMSG = struct.Struct("=BBBBBBBBI")


class Rtm(IntEnum):
    """`RTM_*`: message types."""

    NEWLINK = 16
    NEWADDR = 20
    DELADDR = 21
    GETADDR = 22
    NEWROUTE = 24
    DELROUTE = 25
    GETROUTE = 26


class Rtmgrp(IntEnum):
    """`RTMGRP_*`: groups of notifications, as bits of a socket address."""

    IPV4_IFADDR = 0x10
    IPV6_IFADDR = 0x100


class Rta(IntEnum):
    """`RTA_*`: attributes of a route."""

    DST = 1  # an address; absent for the default route
    OIF = 4  # u32, the index of the device
    PREFSRC = 7  # the source address of the node's own packets
    TABLE = 15  # u32; the field in struct rtmsg has only 8 bits


class RtTable(IntEnum):
    """`RT_TABLE_*`: routing tables with a fixed number."""

    LOCAL = 255


class RtScope(IntEnum):
    """`RT_SCOPE_*`: how far away a destination is."""

    HOST = 254  # on this node


class Rtn(IntEnum):
    """`RTN_*`: what a route does with a packet."""

    LOCAL = 2  # delivers it to this node


class Rtprot(IntEnum):
    """`RTPROT_*`: what created a route."""

    STATIC = 4
