"""`linux/netfilter/nfnetlink_conntrack.h`: connection tracking entries."""

from enum import IntEnum

# The comments give the type of each value. Numbers are in network byte order; {} holds nested attributes.


class IpctnlMsgCt(IntEnum):
    """`IPCTNL_MSG_CT_*`: message types of the subsystem."""

    NEW = 0
    GET = 1
    DELETE = 2


class Cta(IntEnum):
    """`CTA_*`: attributes of an entry."""

    TUPLE_ORIG = 1  # { CtaTuple }: the first packet, as the client sent it
    TUPLE_REPLY = 2  # { CtaTuple }: its reply, whose source is the endpoint
    ID = 12  # u32, not that of a later entry with the same tuple
    ZONE = 18  # u16
    FILTER = 25  # { CtaFilter }, since Linux 5.8; older kernels ignore it


class CtaTuple(IntEnum):
    """`CTA_TUPLE_*`: the parts of a tuple."""

    IP = 1  # { CtaIp }
    PROTO = 2  # { CtaProto }


class CtaIp(IntEnum):
    """`CTA_IP_*`: the addresses of a tuple."""

    V4_SRC = 1
    V4_DST = 2
    V6_SRC = 3
    V6_DST = 4


class CtaProto(IntEnum):
    """`CTA_PROTO_*`: protocol and ports of a tuple."""

    NUM = 1  # u8, as in the IP header
    SRC_PORT = 2  # u16
    DST_PORT = 3  # u16


class CtaFilter(IntEnum):
    """`CTA_FILTER_*`: which fields of the two tuples in a request select the entries of a dump."""

    ORIG_FLAGS = 1  # u32 in the byte order of the machine
    REPLY_FLAGS = 2  # the same for the reply tuple


class CtaFilterF(IntEnum):
    """`CTA_FILTER_F_CTA_*`: the bits of `CtaFilter.ORIG_FLAGS`.

    No uapi header has them; the kernel defines them in `net/netfilter/nf_internals.h`, and libnetfilter_conntrack repeats them.
    """

    IP_DST = 1 << 1
    PROTO_NUM = 1 << 3
    PROTO_DST_PORT = 1 << 5
