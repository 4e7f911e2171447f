"""The version of a file's content, without reading it."""

import os

FileVersion = tuple[int, int, int, int]
"""Inode, size, and times of modification and of status change in nanoseconds; new content changes at least one."""


def file_version(status: os.stat_result) -> FileVersion:
    """Return the version of a file."""
    # A program can set the modification time back (cp -p, rsync), but not that of the status change; a file that is renamed
    # into place has another inode.
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
