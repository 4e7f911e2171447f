"""`linux/if_addr.h`: attributes of addresses that are bound to a device."""

from enum import IntEnum


class Ifa(IntEnum):
    """`IFA_*`: attributes of an address. On a point-to-point device, ADDRESS is the address of the peer."""

    ADDRESS = 1
    LOCAL = 2
