"""`linux/netfilter_ipv4/ip_tables.h`: socket options of the legacy tables. Those of IPv6 have the same numbers."""

from enum import IntEnum


class IptSoGet(IntEnum):
    """`IPT_SO_GET_*`: options of getsockopt(2)."""

    INFO = 64
    ENTRIES = 65
