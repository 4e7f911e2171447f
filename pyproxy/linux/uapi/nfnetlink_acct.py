"""`linux/netfilter/nfnetlink_acct.h`: named packet counters."""

from enum import IntEnum


class NfnlMsgAcct(IntEnum):
    """`NFNL_MSG_ACCT_*`: message types of the subsystem."""

    NEW = 0
    GET = 1


class Nfacct(IntEnum):
    """`NFACCT_*`: attributes of a counter."""

    NAME = 1  # text of at most 31 characters
    PKTS = 2  # u64 in network byte order
