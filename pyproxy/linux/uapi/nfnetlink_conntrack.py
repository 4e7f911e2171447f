"""`linux/netfilter/nfnetlink_conntrack.h`: connection tracking entries."""

from enum import IntEnum


class IpctnlMsgCt(IntEnum):
    """`IPCTNL_MSG_CT_*`: message types of the subsystem."""

    NEW = 0
    GET = 1
    DELETE = 2


class Cta(IntEnum):
    """`CTA_*`: attributes of an entry."""

    TUPLE_ORIG = 1
    TUPLE_REPLY = 2
    ID = 12
    ZONE = 18
    FILTER = 25


class CtaTuple(IntEnum):
    """`CTA_TUPLE_*`: the parts of a tuple."""

    IP = 1
    PROTO = 2


class CtaIp(IntEnum):
    """`CTA_IP_*`: the addresses of a tuple."""

    V4_SRC = 1
    V4_DST = 2
    V6_SRC = 3
    V6_DST = 4


class CtaProto(IntEnum):
    """`CTA_PROTO_*`: protocol and ports of a tuple."""

    NUM = 1
    SRC_PORT = 2
    DST_PORT = 3


class CtaFilter(IntEnum):
    """`CTA_FILTER_*`: which fields of the two tuples in a request select the entries of a dump."""

    ORIG_FLAGS = 1
    REPLY_FLAGS = 2


class CtaFilterF(IntEnum):
    """`CTA_FILTER_F_CTA_*`: the bits of `CtaFilter.ORIG_FLAGS`.

    No uapi header has them; the kernel defines them in `net/netfilter/nf_internals.h`, and libnetfilter_conntrack repeats them.
    """

    IP_DST = 1 << 1
    PROTO_NUM = 1 << 3
    PROTO_DST_PORT = 1 << 5
