"""`linux/inotify.h`: notifications of changes of files."""

from enum import IntEnum


class In(IntEnum):
    """`IN_*`: events in a watched directory, and options of a watch."""

    MODIFY = 0x2
    ATTRIB = 0x4
    MOVED_FROM = 0x40
    MOVED_TO = 0x80
    CREATE = 0x100
    DELETE = 0x200
    DELETE_SELF = 0x400
    MOVE_SELF = 0x800
    ONLYDIR = 0x1000000
