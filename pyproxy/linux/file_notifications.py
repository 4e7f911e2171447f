"""Says when to look at files again: at once after a change in their directories, by inotify(7), or by polling.

The caller looks at all files again, because editors, ``cp`` and the kubelet cause different notifications for the same
change. There is none for a change that another machine makes in a network file system, so only local file systems count as
covered, and none for a write through a memory mapping, so the time of a wait is limited.
"""

import ctypes
import logging
import os
import struct
from collections.abc import Iterable
from functools import reduce
from operator import or_

from pyproxy.linux.netlink import Closeable
from pyproxy.linux.readiness import wait_readable
from pyproxy.linux.uapi.inotify import In
from pyproxy.linux.uapi.magic import Magic

logger = logging.getLogger(__name__)

LONGEST_WAIT_SECONDS = 10.0
_EVENTS = reduce(or_, In)
_LOCAL = frozenset(Magic)
_STATFS_BYTES = 256  # more than `struct statfs` has, which begins with the type as a word of the machine
_LIBC = ctypes.CDLL(None, use_errno=True)


class FileNotifications(Closeable):
    """Notifications of changes in some directories."""

    def __init__(self) -> None:
        self._watches: set[int] = set()
        # fs.inotify.max_user_instances, by default 128, is for all processes of a user.
        self._descriptor: int = _LIBC.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor < 0:
            reason = os.strerror(ctypes.get_errno())
            logger.info("inotify is not available, files are polled instead: %s", reason)

    def cover(self, directories: Iterable[str]) -> bool:
        """Watch exactly these directories.

        Returns whether each change in them since the last call ends the next `wait`. If not, the caller has to poll.
        """
        if self._descriptor < 0:
            return False
        # Again at each call: a path may lead to another directory now. For a directory that has a watch the kernel returns
        # that one, and it does not use the number of a watch again that ended with its directory.
        found = {self._watch(os.fsencode(path)) for path in directories}
        watches = found - {-1}
        for watch in self._watches - watches:
            _LIBC.inotify_rm_watch(self._descriptor, watch)  # fails if the directory is gone
        is_same = watches == self._watches
        self._watches = watches
        return is_same and found == watches

    def _watch(self, path: bytes) -> int:
        status = ctypes.create_string_buffer(_STATFS_BYTES)
        if _LIBC.statfs(path, status) or struct.unpack_from("@L", status)[0] not in _LOCAL:
            return -1
        return int(_LIBC.inotify_add_watch(self._descriptor, path, _EVENTS))

    async def wait(self) -> None:
        """Wait for a change in the directories, at most `LONGEST_WAIT_SECONDS`. Call it if `cover` returned True."""
        if await wait_readable((self._descriptor,), LONGEST_WAIT_SECONDS):
            os.read(self._descriptor, 1 << 16)  # what does not fit ends the next wait

    def close(self) -> None:
        """End the notifications."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
