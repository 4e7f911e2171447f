"""`linux/magic.h`: types of file systems, as statfs(2) returns them."""

from enum import IntEnum


class Magic(IntEnum):
    """`*`: local file systems, in which every change passes through this kernel."""

    EXT4_SUPER_MAGIC = 0xEF53
    XFS_SUPER_MAGIC = 0x58465342
    BTRFS_SUPER_MAGIC = 0x9123683E
    F2FS_SUPER_MAGIC = 0xF2F52010
    TMPFS_MAGIC = 0x01021994
    RAMFS_MAGIC = 0x858458F6
    OVERLAYFS_SUPER_MAGIC = 0x794C7630
