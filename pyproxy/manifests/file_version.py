"""The version of a file's content, without reading it, and the directories in which a change can be one of the file."""

import os
from pathlib import Path

FileVersion = tuple[int, int, int, int]
"""Inode, size, and times of modification and of status change in nanoseconds; new content changes at least one."""


def file_version(status: os.stat_result) -> FileVersion:
    """Return the version of a file."""
    # A program can set the modification time back (cp -p, rsync), but not that of the status change; a file that is renamed
    # into place has another inode.
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


_MOST_LINKS = 40  # MAXSYMLINKS in linux/namei.h


def directories_of(path: str) -> set[str]:
    """Return the directory of a file, and that of each link through which its path leads."""
    # A ConfigMap volume swaps the link ``..data``, through which the link of each file leads.
    found, name = set[str](), Path(path)
    for _ in range(_MOST_LINKS):
        link = next((each for each in (*reversed(name.parents), name) if each.is_symlink()), None)
        found.add(str((link or name).parent))
        if link is None:
            break
        try:
            name = link.parent / link.readlink() / name.relative_to(link)
        except OSError:
            break
    return found
