"""`linux/if_link.h`: attributes of network devices."""

from enum import IntEnum


class Ifla(IntEnum):
    """`IFLA_*`: attributes of a device."""

    IFNAME = 3
    LINKINFO = 18


class IflaInfo(IntEnum):
    """`IFLA_INFO_*`: the type of a device, inside `Ifla.LINKINFO`."""

    KIND = 1


class In6AddrGenMode(IntEnum):
    """`IN6_ADDR_GEN_MODE_*`: which IPv6 address a device gets by itself."""

    NONE = 1
