"""`linux/rtnetlink.h`: links, addresses and routes."""

from enum import IntEnum


class Rtm(IntEnum):
    """`RTM_*`: message types."""

    NEWLINK = 16
    DELLINK = 17
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

    DST = 1
    OIF = 4
    PREFSRC = 7
    TABLE = 15


class RtTable(IntEnum):
    """`RT_TABLE_*`: routing tables with a fixed number."""

    LOCAL = 255


class RtScope(IntEnum):
    """`RT_SCOPE_*`: how far away a destination is."""

    HOST = 254


class Rtn(IntEnum):
    """`RTN_*`: what a route does with a packet."""

    LOCAL = 2


class Rtprot(IntEnum):
    """`RTPROT_*`: what created a route."""

    KERNEL = 2
    STATIC = 4
