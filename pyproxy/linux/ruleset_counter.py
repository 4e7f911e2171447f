"""Detection of external changes of the rules: a few microseconds, without a process and without a dump.

nf_tables, so also the nft variant of iptables: the kernel counts generations of the ruleset of a network namespace, one for
each committed transaction (`nf_tables_commit`). GETGEN returns the number. A generation that pyproxy did not make is an
external change. A notification of each transaction says when to compare it.

Legacy tables have neither. IPT_SO_GET_INFO returns the number and the total size of a table's entries; a change that keeps
both is only found by a full read.
"""

import ctypes
import errno
import os
import socket
import struct
import threading
from collections.abc import Iterable
from typing import Protocol

from pyproxy.errors import ApplyError
from pyproxy.linux.netlink import (
    NETLINK_NETFILTER,
    NFGENMSG_BYTES,
    Closeable,
    NetlinkSocket,
    attribute_values,
    parsing,
)
from pyproxy.linux.nf_tables_messages import request
from pyproxy.linux.uapi.ip_tables import IptSoGet
from pyproxy.linux.uapi.nf_tables import NftaGen, NftMsg
from pyproxy.linux.uapi.nfnetlink import Nfnlgrp
from pyproxy.model.address import Family

_GET_GENERATION = request(NftMsg.GETGEN)
# struct ipt_getinfo (`linux/netfilter_ipv4/ip_tables.h`): name, valid_hooks, hook_entry[5], underflow[5], num_entries, size
_IPT_GETINFO = struct.Struct("=32sI5I5III")
_LIBC = ctypes.CDLL(None, use_errno=True)


class RulesetCounter(Protocol):
    """Remembers a known state of the rules, and compares the present state with it.

    All methods raise ApplyError if the kernel refuses to return the present state.
    """

    @property
    def descriptor(self) -> int | None:
        """Return a file descriptor that is readable from a change on until `changed_externally`.

        None: there are no notifications, or not before the first call of `changed_externally`.
        """
        ...

    def settle(self) -> None:
        """Make the present state the known one. Call it before a read of the rules, so that no change goes unnoticed."""
        ...

    def changed_externally(self) -> bool:
        """Return whether the rules differ from the known state."""
        ...

    def committed(self, commits: int) -> None:
        """Advance the known state by that many successful commits of this process."""
        ...


class NftGeneration(Closeable):
    """The generation of the nf_tables ruleset of this network namespace, which the tables of both families share."""

    def __init__(self) -> None:
        self._netlink = NetlinkSocket(NETLINK_NETFILTER)
        # Each family reads its table in a thread, and begins with the generation.
        self._lock = threading.Lock()
        self._counters: list[_NftCounter] = []
        self._notifications: socket.socket | None = None
        self._has_subscribed = False

    def counter(self) -> RulesetCounter:
        """Return a counter. Commits that are reported to one counter count in all of them."""
        counter = _NftCounter(self)
        self._counters.append(counter)
        return counter

    def read(self) -> int:
        """Return the present generation.

        Raises:
            ApplyError: the kernel refused, for example because memory was low.
        """
        try:
            with self._lock, parsing():
                data, start, end = self._netlink.ask(*_GET_GENERATION, header=NFGENMSG_BYTES)
                return int.from_bytes(attribute_values(data, start, end)[NftaGen.ID])
        except OSError as error:
            raise _unreadable(error) from error

    @property
    def descriptor(self) -> int | None:
        """Return the file descriptor that is readable from a notification on until `discard_notifications`."""
        return self._notifications.fileno() if self._notifications is not None else None

    def discard_notifications(self) -> None:
        """Discard the notifications so far; the first call subscribes.

        The subscription begins late, because a kernel with a subscriber writes a notification for each rule and element of
        the first load.
        """
        if not self._has_subscribed:
            self._has_subscribed = True
            self._notifications = _subscribed()
        while self._notifications is not None:
            try:
                self._notifications.recv(1)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # the socket was full, as during any change of more than a few rules
                    self._unsubscribe()

    def close(self) -> None:
        """Close the sockets."""
        self._netlink.close()
        self._unsubscribe()

    def _unsubscribe(self) -> None:
        if self._notifications is not None:
            self._notifications.close()
            self._notifications = None

    def committed(self, commits: int) -> None:
        """Add commits of this process to the generation that all counters expect; each commit adds exactly one."""
        for counter in self._counters:
            counter.expected = counter.expected + commits & 0xFFFFFFFF


def _subscribed() -> socket.socket | None:
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    try:
        found = socket.socket(socket.AF_NETLINK, kind, NETLINK_NETFILTER)
    except OSError:
        return None
    try:
        # The smallest buffer that the kernel allows: only whether there is a notification matters.
        found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)
        found.bind((0, 1 << Nfnlgrp.NFTABLES - 1))
    except OSError:
        found.close()
        return None
    return found


class _NftCounter:
    # A change between a commit and the next comparison is noticed: the known number advances by the commits of this process,
    # not to the present number.
    def __init__(self, generation: NftGeneration) -> None:
        self._generation = generation
        self.expected = generation.read()

    @property
    def descriptor(self) -> int | None:
        return self._generation.descriptor

    def settle(self) -> None:
        self.expected = self._generation.read()

    def changed_externally(self) -> bool:
        # Before the comparison: the kernel sends notifications after it has advanced the generation.
        self._generation.discard_notifications()
        return self._generation.read() != self.expected

    def committed(self, commits: int) -> None:
        self._generation.committed(commits)


class LegacyCounter(Closeable):
    """Number and size of the entries in one family's legacy tables."""

    descriptor: int | None = None

    def __init__(self, family: Family, tables: Iterable[str]) -> None:
        ipv4 = family is Family.IPV4
        # The kernel answers IPT_SO_GET_INFO on any raw socket of the family.
        domain = socket.AF_INET if ipv4 else socket.AF_INET6
        self._raw = socket.socket(domain, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW)
        self._level = socket.IPPROTO_IP if ipv4 else socket.IPPROTO_IPV6
        self._tables = tuple(tables)
        try:
            self._known = self.read()
        except BaseException:
            self.close()
            raise

    def settle(self) -> None:
        """Make the present state the known one."""
        self._known = self.read()

    def changed_externally(self) -> bool:
        """Return whether number or size of the entries changed in any table."""
        return self.read() != self._known

    def committed(self, commits: int) -> None:  # noqa: ARG002  # legacy tables do not count commits
        """Make the present state the known one. A simultaneous external change stays unnoticed until the next full read."""
        self._known = self.read()

    def close(self) -> None:
        """Close the socket."""
        self._raw.close()

    def read(self) -> tuple[tuple[int, int] | None, ...]:
        """Return number and size in bytes of the entries of each table; None for a table that does not exist.

        Raises:
            ApplyError: the kernel refused, for example because memory was low.
        """
        found: list[tuple[int, int] | None] = []
        for table in self._tables:
            # By ctypes, because socket.getsockopt cannot pass input, and the kernel reads the table's name from the buffer.
            buffer = ctypes.create_string_buffer(_IPT_GETINFO.pack(table.encode(), *[0] * 13), _IPT_GETINFO.size)
            length = ctypes.c_uint32(_IPT_GETINFO.size)
            if not _LIBC.getsockopt(self._raw.fileno(), self._level, IptSoGet.INFO, buffer, ctypes.byref(length)):
                *_, entries, size = _IPT_GETINFO.unpack(buffer.raw)
                found.append((entries, size))
            elif (code := ctypes.get_errno()) in (errno.ENOENT, errno.ENOPROTOOPT):
                found.append(None)
            else:
                raise _unreadable(OSError(code, os.strerror(code)))
        return tuple(found)


def _unreadable(error: OSError) -> ApplyError:
    return ApplyError(f"the state of the rules cannot be read: {error.strerror}", retryable=True)
