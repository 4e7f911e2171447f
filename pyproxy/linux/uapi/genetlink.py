"""`linux/genetlink.h`: generic netlink, whose families get their message types when they are registered."""

from enum import IntEnum


class GenlId(IntEnum):
    """`GENL_ID_*`: the message type of the controller, which is fixed."""

    CTRL = 0x10


class CtrlCmd(IntEnum):
    """`CTRL_CMD_*`: commands of the controller."""

    GETFAMILY = 3


class CtrlAttr(IntEnum):
    """`CTRL_ATTR_*`: attributes of a family."""

    FAMILY_ID = 1  # u16 in the byte order of the machine: the message type of the family
    FAMILY_NAME = 2  # text
