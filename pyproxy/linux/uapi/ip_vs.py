"""`linux/ip_vs.h`: the generic netlink family of IPVS."""

from enum import IntEnum

# The comments give the type of each value. Numbers are in the byte order of the machine, except for ports and IPv4 netmasks;
# {} holds nested attributes.


class IpvsCmd(IntEnum):
    """`IPVS_CMD_*`: commands. A destination is a real server."""

    NEW_SERVICE = 1
    SET_SERVICE = 2
    DEL_SERVICE = 3
    GET_SERVICE = 4
    NEW_DEST = 5
    SET_DEST = 6
    DEL_DEST = 7
    GET_DEST = 8
    SET_CONFIG = 12


class IpvsCmdAttr(IntEnum):
    """`IPVS_CMD_ATTR_*`: attributes of a message."""

    SERVICE = 1  # { IpvsSvcAttr }
    DEST = 2  # { IpvsDestAttr }
    TIMEOUT_TCP = 4  # u32, seconds; so are the next two. 0 keeps the present value
    TIMEOUT_TCP_FIN = 5
    TIMEOUT_UDP = 6


class IpvsSvcAttr(IntEnum):
    """`IPVS_SVC_ATTR_*`: attributes of a virtual server, inside `IpvsCmdAttr.SERVICE`."""

    AF = 1  # u16: AF_INET 2, AF_INET6 10
    PROTOCOL = 2  # u16, as in the IP header
    ADDR = 3  # 16 bytes; of an IPv4 address the first four
    PORT = 4  # u16 in network byte order
    FWMARK = 5  # u32, in place of the three attributes above
    SCHED_NAME = 6  # text
    FLAGS = 7  # {flags u32, mask u32}, without headers
    TIMEOUT = 8  # u32, seconds
    NETMASK = 9  # u32: a mask in IPv4, a prefix length in IPv6


class IpvsDestAttr(IntEnum):
    """`IPVS_DEST_ATTR_*`: attributes of a real server, inside `IpvsCmdAttr.DEST`."""

    ADDR = 1  # 16 bytes, as in IpvsSvcAttr
    PORT = 2  # u16 in network byte order
    FWD_METHOD = 3  # u32: IpVsConnF
    WEIGHT = 4  # u32
    U_THRESH = 5  # u32: with more connections the server gets no new ones; 0 means no limit
    L_THRESH = 6  # u32: with fewer it gets new ones again
    ACTIVE_CONNS = 7  # u32, established
    INACT_CONNS = 8  # u32, being opened or closed, or without a state
    ADDR_FAMILY = 11  # u16, since Linux 3.18


class IpVsSvcF(IntEnum):
    """`IP_VS_SVC_F_*`: flags of a virtual server."""

    PERSISTENT = 0x1
    HASHED = 0x2
    SCHED_SH_PORT = 0x10


class IpVsConnF(IntEnum):
    """`IP_VS_CONN_F_*`: how packets of a connection are forwarded."""

    MASQ = 0
