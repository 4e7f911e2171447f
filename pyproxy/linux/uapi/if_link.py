"""`linux/if_link.h`: attributes of network devices."""

from enum import IntEnum

# The comments give the type of each value. Numbers are in the byte order of the machine; {} holds nested attributes.


class Ifla(IntEnum):
    """`IFLA_*`: attributes of a device."""

    IFNAME = 3  # text
    LINKINFO = 18  # { IflaInfo }


class IflaInfo(IntEnum):
    """`IFLA_INFO_*`: what kind of device it is."""

    KIND = 1  # text, such as bridge or dummy


class In6AddrGenMode(IntEnum):
    """`IN6_ADDR_GEN_MODE_*`: which IPv6 address a device gets by itself."""

    NONE = 1
