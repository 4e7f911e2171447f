"""`linux/if_addr.h`: addresses that are bound to a device."""

import struct
from enum import IntEnum

# struct ifaddrmsg: u8 family, u8 prefix length, u8 flags, u8 scope, u32 index of the device
IFADDRMSG = struct.Struct("=BBBBI")


class Ifa(IntEnum):
    """`IFA_*`: attributes of an address."""

    ADDRESS = 1  # the address; on a point-to-point device that of the peer
    LOCAL = 2  # the device's own address; absent for IPv6, except on a point-to-point device
