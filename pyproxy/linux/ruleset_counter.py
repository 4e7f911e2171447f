"""A cheap look at whether somebody else changed the rules: a few microseconds, no process, no dump.

The nft variant: the kernel counts generations of its ruleset, one for each commit of anybody
(`nf_tables_api.c`, NFT_MSG_GETGEN). The legacy variant: the kernel tells number and size of the entries
of a table (`ip_tables.c`, IPT_SO_GET_INFO); a change that keeps both is not seen here, only by a full read.
"""

import ctypes
import errno
import os
import socket
import struct
import threading
from collections.abc import Iterable
from typing import Protocol

from pyproxy.linux.netlink import NETLINK_NETFILTER, NF_TABLES, NFGENMSG_BYTES, NetlinkSocket, attributes, nfgenmsg
from pyproxy.model.address import Family

_GET_GENERATION = NF_TABLES << 8 | 16
"""NFT_MSG_GETGEN of `linux/netfilter/nf_tables.h`; the answer has one attribute that counts, NFTA_GEN_ID."""
_GENERATION_ID = 1

_IPT_SO_GET_INFO = 64
_IPT_GETINFO = struct.Struct("=32sI5I5III")
"""struct ipt_getinfo: name, valid_hooks, hook_entry[5], underflow[5], num_entries, size."""
_LIBC = ctypes.CDLL(None, use_errno=True)


class RulesetCounter(Protocol):
    """Remembers a state of the rules that is known, and says whether it is still that one."""

    def settle(self) -> None:
        """Call what is there now the known state; whoever reads the rules does so afterwards."""
        ...

    def changed_externally(self) -> bool:
        """Say whether the rules are not those of the known state."""
        ...

    def committed(self, commits: int) -> None:
        """Account for that many successful commits of our own."""
        ...


class NftGeneration:
    """The generation of this network namespace's nf_tables ruleset, of which both families' tables are part."""

    def __init__(self) -> None:
        self._netlink = NetlinkSocket(NETLINK_NETFILTER)
        # The families read their tables in threads, each beginning with the generation.
        self._lock = threading.Lock()
        self._counters: list[_NftCounter] = []

    def counter(self) -> RulesetCounter:
        """Return a counter; every counter knows of the commits that are accounted for in any other."""
        counter = _NftCounter(self)
        self._counters.append(counter)
        return counter

    def read(self) -> int:
        """Return the present generation."""
        with self._lock:
            data, start, end = self._netlink.ask(_GET_GENERATION, nfgenmsg(0), header=NFGENMSG_BYTES)
        found = {kind: data[left:right] for kind, left, right in attributes(data, start, end)}
        return int.from_bytes(found[_GENERATION_ID])

    def close(self) -> None:
        """Close the socket."""
        self._netlink.close()

    def committed(self, commits: int) -> None:
        """Account for commits of our own, each of which adds exactly one."""
        for counter in self._counters:
            counter.expected = counter.expected + commits & 0xFFFFFFFF


class _NftCounter:
    def __init__(self, generation: NftGeneration) -> None:
        self._generation = generation
        self.expected = generation.read()

    def settle(self) -> None:
        self.expected = self._generation.read()

    def changed_externally(self) -> bool:
        return self._generation.read() != self.expected

    def committed(self, commits: int) -> None:
        self._generation.committed(commits)


class LegacyCounter:
    """Number and size of the entries of one family's legacy tables."""

    def __init__(self, family: Family, tables: Iterable[str]) -> None:
        ipv4 = family is Family.IPV4
        domain = socket.AF_INET if ipv4 else socket.AF_INET6
        self._raw = socket.socket(domain, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW)
        self._level = socket.IPPROTO_IP if ipv4 else socket.IPPROTO_IPV6
        self._tables = tuple(tables)
        self._known = self.read()

    def settle(self) -> None:
        """See `RulesetCounter`."""
        self._known = self.read()

    def changed_externally(self) -> bool:
        """See `RulesetCounter`."""
        return self.read() != self._known

    def committed(self, commits: int) -> None:  # noqa: ARG002  # the legacy tables count no commits
        """See `RulesetCounter`. What another agent did at the same moment is taken for ours, until the next full read."""
        self._known = self.read()

    def close(self) -> None:
        """Close the socket."""
        self._raw.close()

    def read(self) -> tuple[tuple[int, int] | None, ...]:
        """Return number and size in bytes of the entries of each table; None where there is no table yet."""
        return tuple(_legacy_info(self._raw, self._level, table) for table in self._tables)


def _legacy_info(raw: socket.socket, level: int, table: str) -> tuple[int, int] | None:
    """Return number of entries and their size in bytes; None where the table does not exist yet."""
    # socket.getsockopt hands the kernel no input, and the kernel wants the name of the table there.
    buffer = ctypes.create_string_buffer(_IPT_GETINFO.pack(table.encode(), *[0] * 13), _IPT_GETINFO.size)
    length = ctypes.c_uint32(_IPT_GETINFO.size)
    if _LIBC.getsockopt(raw.fileno(), level, _IPT_SO_GET_INFO, buffer, ctypes.byref(length)):
        code = ctypes.get_errno()
        if code in (errno.ENOENT, errno.ENOPROTOOPT):
            return None
        raise OSError(code, os.strerror(code))
    fields = _IPT_GETINFO.unpack(buffer.raw)
    return fields[12], fields[13]
