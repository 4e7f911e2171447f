"""`linux/rtnetlink.h`: links, addresses and routes."""

from enum import IntEnum


class Rtm(IntEnum):
    """`RTM_*`: message types."""

    NEWLINK = 16
    DELLINK = 17
    GETLINK = 18
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


class Ifla(IntEnum):
    """`IFLA_*` in `linux/if_link.h`: attributes of a link."""

    IFNAME = 3
    MASTER = 10
    LINKINFO = 18


class IflaInfo(IntEnum):
    """`IFLA_INFO_*` in `linux/if_link.h`: what kind of link it is, and of which kind of link it is a port."""

    KIND = 1
    SLAVE_KIND = 4
    SLAVE_DATA = 5


class IflaBrport(IntEnum):
    """`IFLA_BRPORT_*` in `linux/if_link.h`: settings of a bridge port."""

    MODE = 4
