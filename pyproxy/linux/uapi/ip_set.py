"""`linux/netfilter/ipset/ip_set.h`: sets of addresses, ports and networks."""

from enum import IntEnum

# The comments give the type of each value. Multi-byte numbers are in network byte order, and the kernel refuses them
# without NLA_F_NET_BYTEORDER in their type; LINENO is the exception. {} holds nested attributes.


class IpsetCmd(IntEnum):
    """`IPSET_CMD_*`: message types of the subsystem."""

    CREATE = 2
    DESTROY = 3
    LIST = 7
    ADD = 9
    DEL = 10


class IpsetAttr(IntEnum):
    """`IPSET_ATTR_*` of a message."""

    PROTOCOL = 1  # u8: IPSET_PROTOCOL
    SETNAME = 2  # text of at most 31 characters
    TYPENAME = 3  # text, such as hash:ip,port
    REVISION = 4  # u8
    FAMILY = 5  # u8: AF_INET 2, AF_INET6 10
    DATA = 7  # { IpsetAttrData }
    ADT = 8  # { DATA ... }: members
    LINENO = 9  # u32 in the byte order of the machine


class IpsetAttrData(IntEnum):
    """`IPSET_ATTR_*` of a set or of one member, inside `IpsetAttr.DATA`."""

    IP = 1  # { IpsetAttrIpaddr }
    PORT = 4  # u16
    PROTO = 7  # u8, as in the IP header
    CADT_FLAGS = 8  # u32: IpsetFlag
    MAXELEM = 19  # u32, the largest number of members
    IP2 = 20  # { IpsetAttrIpaddr }, the network of hash:ip,port,net
    CIDR2 = 21  # u8, the prefix length of IP2; 0 is refused
    COMMENT = 26  # text


class IpsetAttrIpaddr(IntEnum):
    """`IPSET_ATTR_IPADDR_*`: one address, inside `IpsetAttrData.IP` or `IP2`."""

    IPV4 = 1  # 4 bytes
    IPV6 = 2  # 16 bytes


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
