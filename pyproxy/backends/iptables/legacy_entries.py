"""The entries of a legacy table as the kernel hands them out (IPT_SO_GET_ENTRIES): reading them needs no extension.

Layouts: `linux/netfilter_ipv4/ip_tables.h`, `linux/netfilter_ipv6/ip6_tables.h`, `linux/netfilter/x_tables.h`, for 64-bit
machines. A table is one block of entries, each a header, matches and a target; a chain is a run of entries. A chain of a
user begins with an entry whose target ERROR has its name, a built-in one where the table's hooks say, and each ends with
an entry that is its policy, or its return.
"""

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

from pyproxy.backends.iptables.hook_rules import FoundRule, Match, hooks_among, parts_of_matches
from pyproxy.backends.iptables.ruleset import HookKey
from pyproxy.backends.listing import Counters
from pyproxy.errors import ApplyError
from pyproxy.model.address import Family

_GET_INFO, _GET_ENTRIES = 64, 65
_INFO = struct.Struct("=32sI5I5III")
"""struct ipt_getinfo: name, valid_hooks, hook_entry[5], underflow[5], num_entries, size."""
_ENTRIES = struct.Struct("=32sI4x")
"""struct ipt_get_entries before the entries."""
_OFFSETS = struct.Struct("=HH")
"""target_offset and next_offset."""
_COUNTERS = struct.Struct("=QQ")
_HEAD = struct.Struct("=H29sB")
"""Of a match and of a target: size, name, revision."""
_VERDICT = struct.Struct("=i")
_TRIES = 5
_BUILT_IN = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
_VERDICTS = {-1: "DROP", -2: "ACCEPT", -5: "RETURN"}
_TABLES = {
    Family.IPV4: Path("/proc/net/ip_tables_names"),
    Family.IPV6: Path("/proc/net/ip6_tables_names"),
}
_LIBC = ctypes.CDLL(None, use_errno=True)


def legacy_tables(family: Family) -> set[str]:
    """Return the names of the legacy tables that exist in this network namespace."""
    try:
        return set(_TABLES[family].read_text().split())
    except OSError:
        return set()


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where in an entry of a family something is."""

    addresses: int
    """Size of source, destination and their masks, which are first."""
    flags: int
    """Behind interfaces and protocol."""
    matched: int
    """Size of all that the entry itself matches."""
    offsets: int
    counters: int
    size: int


_LAYOUTS = {
    Family.IPV4: _Layout(addresses=16, flags=82, matched=84, offsets=88, counters=96, size=112),
    Family.IPV6: _Layout(addresses=64, flags=130, matched=136, offsets=140, counters=152, size=168),
}


class LegacyEntries:
    """What a table had when this was made."""

    def __init__(self, family: Family, table: str) -> None:
        """Read a table; one that does not exist is not created, and has no chains.

        Raises:
            ApplyError: it cannot be read.
        """
        self._layout = _LAYOUTS[family]
        self._data, hooks = _read(family, table)
        self._at: dict[str, list[int]] = {}
        """Where the entries of each chain are, without the last."""
        self._heads: dict[int, str] = {}
        """The chains of users by where a jump to them leads."""
        starts = {at: _BUILT_IN[number] for number, at in hooks.items()}
        chain: list[int] = []
        for at, target, end in self._walk():
            if at in starts:
                chain = self._at[starts[at]] = []
            if bytes(self._data[target + 2 : target + 8]) == b"ERROR\0":
                name = self._heads[end] = _text(bytes(self._data[target + _HEAD.size : end]))
                chain = self._at[name] = []
            else:
                chain.append(at)
        for entries in self._at.values():
            del entries[-1:]
        # The block ends with an entry like the head of a chain.
        self._at.pop("ERROR", None)

    def chains(self) -> list[str]:
        """Return the names of all chains."""
        return list(self._at)

    def find_hooks(self, hooks: Collection[HookKey]) -> list[tuple[HookKey, FoundRule]]:
        """Return which of these hooks, all of this table, are there, as often as they are."""
        chains = dict.fromkeys(hook.chain for hook in hooks)
        return hooks_among(hooks, {name: [self._rule(at) for at in self._at.get(name, ())] for name in chains})

    def jump_targets(self, chain: str) -> set[str]:
        """Return the chains that rules of a chain jump to whatever the packet is."""
        rules = [self._rule(at) for at in self._at.get(chain, ())]
        return {rule.parts.target for rule in rules if rule.parts is not None}

    def digests(self, owns: Callable[[str], bool]) -> dict[str, int]:
        """Return a digest of the rules of each chain that is picked, whatever they have counted and wherever they are."""
        return {name: self._digest(entries) for name, entries in self._at.items() if owns(name)}

    def _digest(self, entries: list[int]) -> int:
        layout, data, found = self._layout, self._data, 0
        for at in entries:
            target_offset, size = _OFFSETS.unpack_from(data, at + layout.offsets)
            target = at + target_offset
            found = crc32(data[at : at + layout.matched], found)
            if data[target + 2]:
                found = crc32(data[at + layout.size : at + size], found)
            else:
                # A jump says where in the block its chain is, which moves with every change of another.
                found = crc32(data[at + layout.size : target], found)
                found = crc32(self._target(target).encode(), found)
        return found

    def _walk(self) -> Iterator[tuple[int, int, int]]:
        at, size = 0, len(self._data)
        while at < size:
            target, length = _OFFSETS.unpack_from(self._data, at + self._layout.offsets)
            yield at, at + target, at + length
            at += length

    def _rule(self, at: int) -> FoundRule:
        layout, data = self._layout, self._data
        target_offset, _ = _OFFSETS.unpack_from(data, at + layout.offsets)
        counters = Counters(*_COUNTERS.unpack_from(data, at + layout.counters))
        target = self._target(at + target_offset)
        # Interfaces and protocol: no hook has any.
        if not target or any(data[at + layout.addresses : at + layout.flags]):
            return FoundRule(None, counters)
        matches = list(self._matches(at + layout.size, at + target_offset))
        has_addresses = any(data[at : at + layout.addresses])
        return FoundRule(parts_of_matches(target, matches, has_addresses=has_addresses), counters)

    def _matches(self, at: int, end: int) -> Iterator[Match]:
        while at < end:
            size, name, revision = _HEAD.unpack_from(self._data, at)
            yield Match(_text(name), revision, bytes(self._data[at + _HEAD.size : at + size]))
            at += size

    def _target(self, at: int) -> str:
        """Return the chain or the verdict of a target; nothing where it is an extension's."""
        if self._data[at + 2]:
            return ""
        verdict = _VERDICT.unpack_from(self._data, at + _HEAD.size)[0]
        return self._heads.get(verdict, "") if verdict >= 0 else _VERDICTS.get(verdict, "")


def _text(name: bytes) -> str:
    return name.partition(b"\0")[0].decode(errors="replace")


def _read(family: Family, table: str) -> tuple[memoryview, dict[int, int]]:
    """Return the entries, and where each hook of netfilter begins in them."""
    # To ask for a table is to create it, and an empty one still costs every packet.
    if table not in legacy_tables(family):
        return memoryview(b""), {}
    ipv4 = family is Family.IPV4
    domain, level = (socket.AF_INET, socket.IPPROTO_IP) if ipv4 else (socket.AF_INET6, socket.IPPROTO_IPV6)
    code = errno.EAGAIN
    try:
        with socket.socket(domain, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW) as raw:
            for _ in range(_TRIES):
                info = ctypes.create_string_buffer(_INFO.pack(table.encode(), *[0] * 13), _INFO.size)
                if code := _ask(raw, level, _GET_INFO, info):
                    break
                fields = _INFO.unpack(info.raw)
                buffer = ctypes.create_string_buffer(_ENTRIES.size + fields[13])
                _ENTRIES.pack_into(buffer, 0, table.encode(), fields[13])
                code = _ask(raw, level, _GET_ENTRIES, buffer)
                if not code:
                    hooks = {number: fields[2 + number] for number in range(5) if fields[1] >> number & 1}
                    return memoryview(buffer.raw)[_ENTRIES.size :], hooks
                if code != errno.EAGAIN:  # of another size by now
                    break
    except OSError as error:
        code = error.errno or errno.EIO
    if code in (errno.ENOENT, errno.ENOPROTOOPT):
        return memoryview(b""), {}
    message = f"{family}: legacy table {table}: {os.strerror(code)}"
    raise ApplyError(message, retryable=True)


def _ask(raw: socket.socket, level: int, option: int, buffer: "ctypes.Array[ctypes.c_char]") -> int:
    length = ctypes.c_uint32(len(buffer))
    if _LIBC.getsockopt(raw.fileno(), level, option, buffer, ctypes.byref(length)):
        return ctypes.get_errno()
    return 0
