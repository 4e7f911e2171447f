"""`linux/if_link.h`: attributes of network devices."""

from enum import IntEnum

# The comments give the type of each value. Numbers are in the byte order of the machine; {} holds nested attributes.


class Ifla(IntEnum):
    """`IFLA_*`: attributes of a device."""

    IFNAME = 3  # text
    MASTER = 10  # u32, the index of the bridge whose port the device is
    LINKINFO = 18  # { IflaInfo }


class IflaInfo(IntEnum):
    """`IFLA_INFO_*`: what kind of device it is, and of which kind of device it is a port."""

    KIND = 1  # text, such as bridge or dummy
    SLAVE_KIND = 4  # the same for the device whose port it is
    SLAVE_DATA = 5  # { } of the slave kind; for a bridge { IflaBrport }


class IflaBrport(IntEnum):
    """`IFLA_BRPORT_*`: settings of a bridge port."""

    MODE = 4  # u8; 1: hairpin, frames may leave through the port that they came from


class In6AddrGenMode(IntEnum):
    """`IN6_ADDR_GEN_MODE_*`: which IPv6 address a device gets by itself."""

    NONE = 1
