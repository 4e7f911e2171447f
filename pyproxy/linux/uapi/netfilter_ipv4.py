"""`linux/netfilter_ipv4.h`: the order in which netfilter calls what is attached to one hook; IPv6 has the same numbers."""

from enum import IntEnum


class NfIpPri(IntEnum):
    """`NF_IP_PRI_*`: priorities; the lowest comes first. Connection tracking is at -200."""

    RAW = -300
    MANGLE = -150
    NAT_DST = -100
    FILTER = 0
    SECURITY = 50
    NAT_SRC = 100
