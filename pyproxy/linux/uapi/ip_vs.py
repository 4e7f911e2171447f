"""`linux/ip_vs.h`: the generic netlink family of IPVS."""

from enum import IntEnum


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

    SERVICE = 1
    DEST = 2
    TIMEOUT_TCP = 4
    TIMEOUT_TCP_FIN = 5
    TIMEOUT_UDP = 6


class IpvsSvcAttr(IntEnum):
    """`IPVS_SVC_ATTR_*`: attributes of a virtual server, inside `IpvsCmdAttr.SERVICE`."""

    AF = 1
    PROTOCOL = 2
    ADDR = 3
    PORT = 4
    FWMARK = 5
    SCHED_NAME = 6
    FLAGS = 7
    TIMEOUT = 8
    NETMASK = 9


class IpvsDestAttr(IntEnum):
    """`IPVS_DEST_ATTR_*`: attributes of a real server, inside `IpvsCmdAttr.DEST`."""

    ADDR = 1
    PORT = 2
    FWD_METHOD = 3
    WEIGHT = 4
    U_THRESH = 5
    L_THRESH = 6
    ACTIVE_CONNS = 7
    INACT_CONNS = 8
    ADDR_FAMILY = 11


class IpVsSvcF(IntEnum):
    """`IP_VS_SVC_F_*`: flags of a virtual server."""

    PERSISTENT = 0x1
    HASHED = 0x2
    SCHED_SH_PORT = 0x10


class IpVsConnF(IntEnum):
    """`IP_VS_CONN_F_*`: how packets of a connection are forwarded."""

    MASQ = 0
