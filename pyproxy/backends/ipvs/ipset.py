"""ipsets by netlink: no `ipset` process, many members in one message (`linux/netfilter/ipset/ip_set.h`)."""

import errno
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping
from enum import Enum

from pyproxy.backends.ipvs.entries import Member
from pyproxy.backends.ipvs.static_rules import SET_TYPES, set_prefix
from pyproxy.errors import ApplyError
from pyproxy.linux.netlink import NETWORK_ORDER, Message, NetlinkSocket, attribute, attributes, nest, text_attribute
from pyproxy.model.address import Family, Network

_NETLINK_NETFILTER = 12
_SUBSYSTEM = 6 << 8
_CREATE, _DESTROY, _LIST, _ADD, _DELETE = 2, 3, 7, 9, 10
_PROTOCOL, _SETNAME, _TYPENAME, _REVISION, _FAMILY = 1, 2, 3, 4, 5
_DATA, _ADT, _LINENO = 7, 8, 9
_IP, _PORT, _PROTO, _FLAGS, _MAXELEM, _IP2, _CIDR2, _COMMENT = 1, 4, 7, 8, 19, 20, 21, 26
_WITH_COMMENT = 1 << 4
_LONGEST_REMARK = 255
_PROTOCOL_VERSION = 6
_NFGENMSG = struct.Struct("=BBH")
_MOST_MEMBERS = 1 << 20
_MEMBERS_PER_MESSAGE = 150
"""A message is at most 64 KiB long; an IPv6 member with a remark takes up to 300 bytes."""
_IP_KIND = {Family.IPV4: 1 | NETWORK_ORDER, Family.IPV6: 2 | NETWORK_ORDER}
_REASONS = {
    # Numbers of ipset's own (`linux/netfilter/ipset/ip_set.h`).
    4096 + 2: "the kernel has no sets of this type: module ip_set_hash_ip, ip_set_hash_ipport or ip_set_hash_ipportnet",
    4096 + 4: "a rule still uses it",
    4096 + 6: "it exists with another type",
}
_HEADER_BYTES = _NFGENMSG.size


class IpsetType(Enum):
    """Types of sets; the value is the kernel's name, the least revision with what we use, and whether members have remarks."""

    IP = ("hash:ip", 0, False)
    IP_PORT = ("hash:ip,port", 3, True)
    IP_PORT_NET = ("hash:ip,port,net", 1, False)


class IpSets:
    """The ipsets of one family whose names have one prefix, in this network namespace."""

    def __init__(self, family: Family, prefix: str) -> None:
        """Open the door.

        Raises:
            OSError: the kernel has no netfilter netlink.
        """
        self.prefix = prefix
        self.family = family
        self._netlink = NetlinkSocket(_NETLINK_NETFILTER)

    def close(self) -> None:
        """Close the door."""
        self._netlink.close()

    def read(self, types: Mapping[str, IpsetType]) -> tuple[set[str], dict[Member, str]]:
        """Return which of the named sets exist, and their members with remarks."""
        names: set[str] = set()
        members: dict[Member, str] = {}
        for name in types:
            try:
                for data, start, end in self._dump(name):
                    members.update(_parse_members(data, start, end, name))
                names.add(name)
            except OSError as error:
                if error.errno != errno.ENOENT:
                    raise
        return names, members

    def create(self, names: Collection[str], types: Mapping[str, IpsetType]) -> None:
        """Create sets; one that exists with the same type is no error.

        Raises:
            ApplyError: there is one of that name and another type, or the kernel has no such type.
        """
        self._perform([self._creation(name, types[name]) for name in names], "create")

    def destroy(self, names: Collection[str]) -> None:
        """Destroy sets; one that is gone already is no error.

        Raises:
            ApplyError: a rule still uses one.
        """
        self._perform([self._message(_DESTROY, self._name(name)) for name in names], "destroy", (errno.ENOENT,))

    def add(self, members: Mapping[Member, str]) -> None:
        """Add members with remarks; one that is there already gets the new remark."""
        self._perform(list(self._changes(_ADD, members)), "add to")

    def delete(self, members: Iterable[Member]) -> None:
        """Delete members; one that is gone already is no error."""
        self._perform(list(self._changes(_DELETE, dict.fromkeys(members, ""))), "delete from", (errno.ENOENT,))

    def _perform(self, messages: list[Message], verb: str, passed: Collection[int] = ()) -> None:
        for refusal in self._netlink.send(messages):
            if refusal.code not in passed:
                reason = _REASONS.get(refusal.code, refusal.text)
                message = f"ipset {self.prefix}*: {verb}: {reason}"
                raise ApplyError(message, retryable=refusal.code in (errno.ENOMEM, errno.EPERM))

    def _creation(self, name: str, kind: IpsetType) -> Message:
        type_name, revision, has_remarks = kind.value
        flags = _WITH_COMMENT if has_remarks else 0
        return self._message(
            _CREATE,
            self._name(name),
            text_attribute(_TYPENAME, type_name),
            attribute(_REVISION, bytes([revision])),
            attribute(_FAMILY, bytes([self.family.socket_family])),
            nest(
                _DATA,
                attribute(_MAXELEM | NETWORK_ORDER, struct.pack("!I", _MOST_MEMBERS)),
                attribute(_FLAGS | NETWORK_ORDER, struct.pack("!I", flags)),
            ),
        )

    def _changes(self, command: int, members: Mapping[Member, str]) -> Iterator[Message]:
        by_set: dict[str, list[bytes]] = {}
        for member, remark in members.items():
            by_set.setdefault(member.set, []).append(self._member(member, remark))
        # The kernel wants a line number beside several members, for its error messages.
        line = attribute(_LINENO, struct.pack("=I", 0))
        for name, packed in by_set.items():
            for start in range(0, len(packed), _MEMBERS_PER_MESSAGE):
                part = nest(_ADT, *packed[start : start + _MEMBERS_PER_MESSAGE])
                yield self._message(command, self._name(name), line, part)

    def _member(self, member: Member, remark: str) -> bytes:
        parts = [self._ip(_IP, member.ip)]
        if member.port:
            parts.append(attribute(_PORT | NETWORK_ORDER, member.port.to_bytes(2)))
            parts.append(attribute(_PROTO, bytes([member.protocol])))
        if member.network is not None:
            parts.append(self._ip(_IP2, member.network.ip))
            parts.append(attribute(_CIDR2, bytes([member.network.prefix])))
        if remark:
            parts.append(text_attribute(_COMMENT, remark[:_LONGEST_REMARK]))
        return nest(_DATA, *parts)

    def _ip(self, kind: int, ip: bytes) -> bytes:
        return nest(kind, attribute(_IP_KIND[self.family], ip))

    def _name(self, name: str) -> bytes:
        return text_attribute(_SETNAME, self.prefix + name)

    def _message(self, command: int, *parts: bytes) -> Message:
        return Message(_SUBSYSTEM | command, 0, self._body(*parts))

    def _body(self, *parts: bytes) -> bytes:
        head = _NFGENMSG.pack(self.family.socket_family, 0, 0)
        return head + attribute(_PROTOCOL, bytes([_PROTOCOL_VERSION])) + b"".join(parts)

    def _dump(self, name: str) -> Iterator[tuple[memoryview, int, int]]:
        return self._netlink.dump(_SUBSYSTEM | _LIST, self._body(self._name(name)), header=_HEADER_BYTES)


def _parse_members(data: memoryview, start: int, end: int, name: str) -> Iterator[tuple[Member, str]]:
    for kind, left, right in attributes(data, start, end):
        if kind == _ADT:
            for _, member_start, member_end in attributes(data, left, right):
                yield _parse_member(data, member_start, member_end, name)


def _parse_member(data: memoryview, start: int, end: int, name: str) -> tuple[Member, str]:
    ip, protocol, port, remark = b"", 0, 0, ""
    network_ip, prefix = b"", 0
    for kind, left, right in attributes(data, start, end):
        match kind:
            case _ if kind == _IP:
                ip = bytes(data[left + 4 : right])
            case _ if kind == _PORT:
                port = int.from_bytes(data[left:right])
            case _ if kind == _PROTO:
                protocol = data[left]
            case _ if kind == _IP2:
                network_ip = bytes(data[left + 4 : right])
            case _ if kind == _CIDR2:
                prefix = data[left]
            case _ if kind == _COMMENT:
                remark = bytes(data[left:right]).rstrip(bytes(1)).decode(errors="replace")
    return Member(name, ip, protocol, port, Network(network_ip, prefix) if network_ip else None), remark


_TYPES = {kind.value[0]: kind for kind in IpsetType}


def ipvs_sets(family: Family) -> tuple[IpSets, dict[str, IpsetType]]:
    """Return the door to a family's sets, and their types by name."""
    return IpSets(family, set_prefix(family)), {name: _TYPES[kind] for name, kind in SET_TYPES.items()}
