"""`linux/netfilter/ipset/ip_set.h`: sets of addresses, ports and networks."""

from enum import IntEnum


class IpsetCmd(IntEnum):
    """`IPSET_CMD_*`: message types of the subsystem."""

    CREATE = 2
    DESTROY = 3
    LIST = 7
    ADD = 9
    DEL = 10


class IpsetAttr(IntEnum):
    """`IPSET_ATTR_*` of a message."""

    PROTOCOL = 1
    SETNAME = 2
    TYPENAME = 3
    REVISION = 4
    FAMILY = 5
    DATA = 7
    ADT = 8
    LINENO = 9


class IpsetAttrData(IntEnum):
    """`IPSET_ATTR_*` of a set or of one member, inside `IpsetAttr.DATA`."""

    IP = 1
    PORT = 4
    PROTO = 7
    CADT_FLAGS = 8
    MAXELEM = 19
    IP2 = 20
    CIDR2 = 21
    COMMENT = 26


class IpsetAttrIpaddr(IntEnum):
    """`IPSET_ATTR_IPADDR_*`: one address, inside `IpsetAttrData.IP` or `IP2`."""

    IPV4 = 1
    IPV6 = 2


class IpsetFlag(IntEnum):
    """`IPSET_FLAG_*`: flags of a set."""

    WITH_COMMENT = 1 << 4


class IpsetErr(IntEnum):
    """`IPSET_ERR_*`: errors of ipset, beyond the errno of the system."""

    FIND_TYPE = 4098
    BUSY = 4100
    TYPE_MISMATCH = 4102


IPSET_PROTOCOL = 6
"""Version 6 of the protocol, the least that kernels accept (`IPSET_PROTOCOL_MIN`)."""
IPSET_MAX_COMMENT_SIZE = 255
"""Bytes of a comment of a member, without the final zero."""
