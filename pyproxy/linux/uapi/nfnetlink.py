"""`linux/netfilter/nfnetlink.h`: the subsystems of netfilter."""

from enum import IntEnum


class NfnlSubsys(IntEnum):
    """`NFNL_SUBSYS_*`: the upper byte of a message type; the lower byte is the subsystem's own."""

    CTNETLINK = 1
    IPSET = 6
    ACCT = 7
    NFTABLES = 10
    NFT_COMPAT = 11


class NfnlMsg(IntEnum):
    """`NFNL_MSG_*`: the messages around a transaction."""

    BATCH_BEGIN = 0x10  # its nfgenmsg.res_id names the subsystem
    BATCH_END = 0x11


class Nfnlgrp(IntEnum):
    """`NFNLGRP_*`: groups of notifications. The bit in a socket address is one less."""

    NFTABLES = 7
