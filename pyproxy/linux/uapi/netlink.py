"""`linux/netlink.h`: protocols, flags and types of every netlink message."""

from enum import IntEnum


class NetlinkProtocol(IntEnum):
    """`NETLINK_*`: the third argument of socket(2)."""

    ROUTE = 0
    NETFILTER = 12
    GENERIC = 16


class NetlinkOption(IntEnum):
    """`NETLINK_*`: options of a socket at the level SOL_NETLINK."""

    CAP_ACK = 10  # Linux 4.3: errors do not repeat the refused message
    EXT_ACK = 11  # Linux 4.12: errors carry an explanation
    GET_STRICT_CHK = 12  # Linux 4.20: dumps honour all fields of the request


class Nlmsg(IntEnum):
    """`NLMSG_*`: message types that mean the same in all protocols."""

    ERROR = 2
    DONE = 3


class NlmF(IntEnum):
    """`NLM_F_*`: flags of all messages."""

    REQUEST = 0x1
    ACK = 0x4
    DUMP_INTR = 0x10  # set in the answers of a dump during which something changed


class NlmFGet(IntEnum):
    """`NLM_F_*`: flags of requests that read. The header gives the same bits other names in requests that create."""

    DUMP = 0x300  # ROOT 0x100 and MATCH 0x200


class NlmFNew(IntEnum):
    """`NLM_F_*`: flags of requests that create."""

    REPLACE = 0x100  # change the object if it exists
    EXCL = 0x200  # refuse with EEXIST if it exists
    CREATE = 0x400  # create it if it does not exist
    APPEND = 0x800  # behind the present ones, such as rules of a chain


class NlmsgerrAttr(IntEnum):
    """`NLMSGERR_ATTR_*`: attributes behind an error, on a socket with `NetlinkOption.EXT_ACK`."""

    MSG = 1  # text


class NlaF(IntEnum):
    """`NLA_F_*`: the two upper bits of an attribute's type."""

    NET_BYTEORDER = 1 << 14
    NESTED = 1 << 15


NLA_TYPE_MASK = 0xFFFF & ~(NlaF.NESTED | NlaF.NET_BYTEORDER)
