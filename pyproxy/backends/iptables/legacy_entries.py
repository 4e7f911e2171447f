"""The entries of a legacy table, in the kernel's own form: reading them does not depend on the extensions that are installed."""

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

from pyproxy.backends.iptables.hook_rules import FoundRule, Match, hooks_among, parts_of_matches
from pyproxy.backends.iptables.ruleset import HookKey
from pyproxy.backends.listing import Counters
from pyproxy.errors import ApplyError
from pyproxy.linux.uapi.ip_tables import IptSoGet
from pyproxy.model.address import Family

# IPT_SO_GET_ENTRIES returns a table as one block of entries. Each entry is a struct ipt_entry (or ip6t_entry) that is followed
# by matches and one target, all of them of variable size:
#
#     entry    addresses and their masks | interfaces and their masks | protocol, flags | … | target_offset, next_offset
#              | … | packet and byte counters
#     match    size (2 bytes) | name (29) | revision (1) | data of the extension
#     target   the same; with an empty name it is the standard target, whose data is a verdict
#
# A chain is a run of entries. A user-defined chain begins with an entry whose target is named ERROR and has the name of the
# chain as its data; a built-in chain begins at the offset that IPT_SO_GET_INFO returns for its hook. Each chain ends with an
# entry for its policy, or for the return to the caller. A verdict that is not negative is the offset of the entry to jump to;
# a negative one is -1 minus the number of the verdict in `linux/netfilter.h`.
#
# Headers: `linux/netfilter_ipv4/ip_tables.h`, `linux/netfilter_ipv6/ip6_tables.h`, `linux/netfilter/x_tables.h`. The offsets
# here are those of 64-bit machines.

# struct ipt_getinfo: name, valid_hooks, hook_entry[5], underflow[5], num_entries, size
_INFO = struct.Struct("=32sI5I5III")
_ENTRIES = struct.Struct("=32sI4x")  # the head of struct ipt_get_entries: name, size
_OFFSETS = struct.Struct("=HH")  # target_offset and next_offset of an entry, from its start
_COUNTERS = struct.Struct("=QQ")
_HEAD = struct.Struct("=H29sB")  # struct xt_entry_match and xt_entry_target: size, name, revision
_NAME_AT = 2
_ERROR_TARGET = b"ERROR\0"
_VERDICT = struct.Struct("=i")
_TRIES = 5
# In the order of enum nf_inet_hooks (`linux/netfilter.h`).
_BUILT_IN = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
# NF_DROP is 0, NF_ACCEPT 1; RETURN is XT_RETURN (`linux/netfilter/x_tables.h`), -NF_REPEAT - 1.
_VERDICTS = {-1: "DROP", -2: "ACCEPT", -5: "RETURN"}
_TABLES = {
    Family.IPV4: Path("/proc/net/ip_tables_names"),
    Family.IPV6: Path("/proc/net/ip6_tables_names"),
}
# Python's socket.getsockopt has no input, and the kernel wants the name of the table in the buffer.
_LIBC = ctypes.CDLL(None, use_errno=True)


def legacy_tables(family: Family) -> set[str]:
    """Return the names of the legacy tables that exist in this network namespace."""
    try:
        return set(_TABLES[family].read_text().split())
    except OSError:
        return set()


@dataclass(frozen=True, slots=True)
class _Layout:
    # Offsets in struct ipt_entry or ip6t_entry. Each is the end of what its comment says.
    interfaces: int  # source and destination addresses and their masks
    flags: int  # interfaces and the protocol
    nfcache: int  # everything that the entry itself matches
    offsets: int
    counters: int
    size: int


_LAYOUTS = {
    Family.IPV4: _Layout(interfaces=16, flags=82, nfcache=84, offsets=88, counters=96, size=112),
    Family.IPV6: _Layout(interfaces=64, flags=130, nfcache=136, offsets=140, counters=152, size=168),
}


class LegacyEntries:
    """The content of a table at the moment when this object was created."""

    def __init__(self, family: Family, table: str) -> None:
        """Read a table. A table that does not exist has no chains, and is not created.

        Raises:
            ApplyError: the table cannot be read.
        """
        self._layout = _LAYOUTS[family]
        self._data, hooks = _read(family, table)
        # Offsets of the entries of each chain, without the last one, which is the policy or the return.
        self._at: dict[str, list[int]] = {}
        # User-defined chains by the offset of their first rule, which a jump to them has as its verdict.
        self._heads: dict[int, str] = {}
        starts = {at: _BUILT_IN[number] for number, at in hooks.items()}
        chain: list[int] = []
        at = 0
        while at < len(self._data):
            target_offset, length = _OFFSETS.unpack_from(self._data, at + self._layout.offsets)
            target, end = at + target_offset, at + length
            if at in starts:
                chain = self._at[starts[at]] = []
            name_at = target + _NAME_AT
            if bytes(self._data[name_at : name_at + len(_ERROR_TARGET)]) == _ERROR_TARGET:
                name = self._heads[end] = _text(bytes(self._data[target + _HEAD.size : end]))
                chain = self._at[name] = []
            else:
                chain.append(at)
            at = end
        for entries in self._at.values():
            del entries[-1:]
        # The last entry of a block has the target ERROR as well, with the name ERROR.
        self._at.pop("ERROR", None)

    def chains(self) -> list[str]:
        """Return the names of all chains."""
        return list(self._at)

    def find_hooks(self, hooks: Collection[HookKey]) -> list[tuple[HookKey, FoundRule]]:
        """Return which of these hooks, all of this table, are in place, once for each copy."""
        chains = dict.fromkeys(hook.chain for hook in hooks)
        return hooks_among(hooks, {name: [self._rule(at) for at in self._at.get(name, ())] for name in chains})

    def jump_targets(self, chain: str) -> set[str]:
        """Return the targets of the hooks in a chain: of its rules that match a comment and conntrack states at most."""
        rules = [self._rule(at) for at in self._at.get(chain, ())]
        return {rule.parts.target for rule in rules if rule.parts is not None}

    def digests(self, owns: Callable[[str], bool]) -> dict[str, int]:
        """Return a digest of the rules of each chain that `owns` picks.

        It does not depend on counters, nor on where in the block a chain is.
        """
        layout, data = self._layout, self._data
        found = {}
        for name, entries in self._at.items():
            if not owns(name):
                continue
            digest = 0
            for at in entries:
                target_offset, size = _OFFSETS.unpack_from(data, at + layout.offsets)
                target = at + target_offset
                digest = crc32(data[at : at + layout.nfcache], digest)
                if data[target + _NAME_AT]:
                    digest = crc32(data[at + layout.size : at + size], digest)
                else:
                    # The verdict of a jump is an offset, which changes whenever a chain before it grows or shrinks. The
                    # name of the chain is used instead.
                    digest = crc32(data[at + layout.size : target], digest)
                    digest = crc32(self._target(target).encode(), digest)
            found[name] = digest
        return found

    def _rule(self, at: int) -> FoundRule:
        layout, data = self._layout, self._data
        target_offset, _ = _OFFSETS.unpack_from(data, at + layout.offsets)
        end = at + target_offset
        counters = Counters(*_COUNTERS.unpack_from(data, at + layout.counters))
        target = self._target(end)
        # Hooks match no interface and no protocol.
        if not target or any(data[at + layout.interfaces : at + layout.flags]):
            return FoundRule(None, counters)
        has_addresses = any(data[at : at + layout.interfaces])
        matches: list[Match] = []
        at += layout.size
        while at < end:
            size, name, revision = _HEAD.unpack_from(data, at)
            matches.append(Match(_text(name), revision, bytes(data[at + _HEAD.size : at + size])))
            at += size
        return FoundRule(parts_of_matches(target, matches, has_addresses=has_addresses), counters)

    def _target(self, at: int) -> str:
        # An extension has a target with a name, and no verdict.
        if self._data[at + _NAME_AT]:
            return ""
        verdict = _VERDICT.unpack_from(self._data, at + _HEAD.size)[0]
        return self._heads.get(verdict, "") if verdict >= 0 else _VERDICTS.get(verdict, "")


def _text(name: bytes) -> str:
    return name.partition(b"\0")[0].decode(errors="replace")


def _read(family: Family, table: str) -> tuple[memoryview, dict[int, int]]:
    # These options create a table that does not exist, and every packet passes a table, even if it is empty.
    if table not in legacy_tables(family):
        return memoryview(b""), {}
    ipv4 = family is Family.IPV4
    domain, level = (socket.AF_INET, socket.IPPROTO_IP) if ipv4 else (socket.AF_INET6, socket.IPPROTO_IPV6)
    code = errno.EAGAIN
    try:
        with socket.socket(domain, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW) as raw:
            for _ in range(_TRIES):
                info = ctypes.create_string_buffer(_INFO.pack(table.encode(), *[0] * 13), _INFO.size)
                if code := _getsockopt(raw, level, IptSoGet.INFO, info):
                    break
                _, valid_hooks, *offsets, _, size = _INFO.unpack(info.raw)
                buffer = ctypes.create_string_buffer(_ENTRIES.size + size)
                _ENTRIES.pack_into(buffer, 0, table.encode(), size)
                code = _getsockopt(raw, level, IptSoGet.ENTRIES, buffer)
                if not code:
                    hooks = {number: offsets[number] for number in range(len(_BUILT_IN)) if valid_hooks >> number & 1}
                    return memoryview(buffer.raw)[_ENTRIES.size :], hooks
                # EAGAIN: the table has another size by now (`ip_tables.c`, get_entries).
                if code != errno.EAGAIN:
                    break
    except OSError as error:
        code = error.errno or errno.EIO
    # The table was removed meanwhile, or the module of the family is not loaded.
    if code in (errno.ENOENT, errno.ENOPROTOOPT):
        return memoryview(b""), {}
    message = f"{family}: legacy table {table}: {os.strerror(code)}"
    raise ApplyError(message, retryable=True)


def _getsockopt(raw: socket.socket, level: int, option: int, buffer: "ctypes.Array[ctypes.c_char]") -> int:
    # The buffer is input and output. The result is the errno, or 0.
    length = ctypes.c_uint32(len(buffer))
    if _LIBC.getsockopt(raw.fileno(), level, option, buffer, ctypes.byref(length)):
        return ctypes.get_errno()
    return 0
