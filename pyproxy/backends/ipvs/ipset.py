"""Creates, fills and reads ipsets by netlink: no `ipset` process, and many members in one message."""

import errno
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping
from enum import Enum

from pyproxy.backends.ipvs.entries import Member
from pyproxy.backends.ipvs.static_rules import SET_TYPES, set_prefix
from pyproxy.errors import ApplyError
from pyproxy.linux.netlink import (
    ATTRIBUTE,
    NETLINK_NETFILTER,
    NETWORK_ORDER,
    NFGENMSG_BYTES,
    Closeable,
    Message,
    NetlinkSocket,
    attribute,
    attributes,
    nest,
    nfgenmsg,
    parsing,
    text_attribute,
)
from pyproxy.linux.uapi.ip_set import (
    IPSET_MAX_COMMENT_SIZE,
    IPSET_PROTOCOL,
    IpsetAttr,
    IpsetAttrData,
    IpsetAttrIpaddr,
    IpsetCmd,
    IpsetErr,
    IpsetFlag,
)
from pyproxy.linux.uapi.nfnetlink import NfnlSubsys
from pyproxy.model.address import Family, Network

# The limit of a set. The kernel's default of 65,536 is too small for the frontends of a large cluster.
_MOST_MEMBERS = 1 << 20
# A message is at most 64 KiB long, because the length of the attribute ADT has 16 bits. An IPv6 member with a comment
# takes up to 300 bytes.
_MEMBERS_PER_MESSAGE = 150
_ADDRESS_TYPE = {Family.IPV4: IpsetAttrIpaddr.IPV4 | NETWORK_ORDER, Family.IPV6: IpsetAttrIpaddr.IPV6 | NETWORK_ORDER}
# Constants of the module, because reading a member from its class takes ten times as long, and a set has many members.
_IP, _PORT, _PROTO = IpsetAttrData.IP, IpsetAttrData.PORT, IpsetAttrData.PROTO
_IP2, _CIDR2, _COMMENT = IpsetAttrData.IP2, IpsetAttrData.CIDR2, IpsetAttrData.COMMENT
_REASONS: dict[int, str] = {
    IpsetErr.FIND_TYPE: "the kernel does not support sets of this type:"
    " module ip_set_hash_ip, ip_set_hash_ipport or ip_set_hash_ipportnet",
    IpsetErr.BUSY: "a rule still uses it",
    IpsetErr.TYPE_MISMATCH: "it exists with another type",
}


class IpsetType(Enum):
    """Types of sets: the kernel's name, the lowest revision with the features in use, and whether members have comments."""

    # A kernel refuses a revision that it does not know. hash:ip,port has SCTP from revision 1 on and comments from 3 on;
    # hash:ip,port,net has SCTP from 1 on.
    IP = ("hash:ip", 0, False)
    IP_PORT = ("hash:ip,port", 3, True)
    IP_PORT_NET = ("hash:ip,port,net", 1, False)


class IpSets(Closeable):
    """The ipsets of one family whose names begin with a prefix, in this network namespace."""

    def __init__(self, family: Family, prefix: str) -> None:
        """Open a socket.

        Raises:
            OSError: the kernel has no netfilter netlink.
        """
        self.prefix = prefix
        self.family = family
        self._netlink = NetlinkSocket(NETLINK_NETFILTER)

    def close(self) -> None:
        """Close the socket."""
        self._netlink.close()

    @parsing()
    def read(self, types: Mapping[str, IpsetType]) -> tuple[set[str], dict[Member, str]]:
        """Return which of the named sets exist, and their members with comments.

        Raises:
            OSError: the kernel has no ipset, or the sets cannot be read.
        """
        names: set[str] = set()
        members: dict[Member, str] = {}
        # One request for each set. Without a name the kernel lists all sets, those of other programs included.
        for name in types:
            body = self._body(text_attribute(IpsetAttr.SETNAME, self.prefix + name))
            try:
                answers = self._netlink.dump(NfnlSubsys.IPSET << 8 | IpsetCmd.LIST, body, header=NFGENMSG_BYTES)
                for data, start, end in answers:
                    for kind, left, right in attributes(data, start, end):
                        if kind == IpsetAttr.ADT:
                            members.update(
                                _parse_member(data, member_start, member_end, name)
                                for _, member_start, member_end in attributes(data, left, right)
                            )
                names.add(name)
            except OSError as error:
                if error.errno != errno.ENOENT:
                    raise
        return names, members

    def create(self, names: Collection[str], types: Mapping[str, IpsetType]) -> None:
        """Create sets. A set that exists with the same type is left as it is.

        Raises:
            ApplyError: a set exists with another type, or the kernel does not support the type.
        """
        messages = []
        for name in names:
            type_name, revision, has_comments = types[name].value
            flags = IpsetFlag.WITH_COMMENT if has_comments else 0
            parts = (
                text_attribute(IpsetAttr.TYPENAME, type_name),
                attribute(IpsetAttr.REVISION, bytes([revision])),
                attribute(IpsetAttr.FAMILY, bytes([self.family.socket_family])),
                nest(
                    IpsetAttr.DATA,
                    attribute(IpsetAttrData.MAXELEM | NETWORK_ORDER, struct.pack("!I", _MOST_MEMBERS)),
                    attribute(IpsetAttrData.CADT_FLAGS | NETWORK_ORDER, struct.pack("!I", flags)),
                ),
            )
            messages.append(self._message(IpsetCmd.CREATE, name, *parts))
        self._perform(messages, "create")

    def destroy(self, names: Collection[str]) -> None:
        """Destroy sets. A set that does not exist is skipped.

        Raises:
            ApplyError: a rule still uses one of them.
        """
        self._perform([self._message(IpsetCmd.DESTROY, name) for name in names], "destroy", (errno.ENOENT,))

    def add(self, members: Mapping[Member, str]) -> None:
        """Add members with comments. A member that is there already gets the new comment."""
        self._perform(list(self._changes(IpsetCmd.ADD, members)), "add to")

    def delete(self, members: Iterable[Member]) -> None:
        """Delete members. A member that is not there is skipped."""
        self._perform(list(self._changes(IpsetCmd.DEL, dict.fromkeys(members, ""))), "delete from", (errno.ENOENT,))

    def _perform(self, messages: list[Message], verb: str, accepted: Collection[int] = ()) -> None:
        for refusal in self._netlink.send(messages):
            if refusal.code not in accepted:
                reason = _REASONS.get(refusal.code, refusal.text)
                message = f"ipset {self.prefix}*: {verb}: {reason}"
                raise ApplyError(message, retryable=refusal.code in (errno.ENOMEM, errno.EPERM))

    def _changes(self, command: int, members: Mapping[Member, str]) -> Iterator[Message]:
        by_set: dict[str, list[bytes]] = {}
        address_type = _ADDRESS_TYPE[self.family]
        for member, comment in members.items():
            parts = [nest(_IP, attribute(address_type, member.ip))]
            if member.port:
                parts.append(attribute(_PORT | NETWORK_ORDER, member.port.to_bytes(2)))
                parts.append(attribute(_PROTO, bytes([member.protocol])))
            if member.network is not None:
                parts.append(nest(_IP2, attribute(address_type, member.network.ip)))
                parts.append(attribute(_CIDR2, bytes([member.network.prefix])))
            if comment:
                parts.append(text_attribute(_COMMENT, comment[:IPSET_MAX_COMMENT_SIZE]))
            by_set.setdefault(member.set, []).append(nest(IpsetAttr.DATA, *parts))
        # With several members the kernel requires a line number, which it would fill in for an error message.
        line = attribute(IpsetAttr.LINENO, struct.pack("=I", 0))
        for name, packed in by_set.items():
            for start in range(0, len(packed), _MEMBERS_PER_MESSAGE):
                part = nest(IpsetAttr.ADT, *packed[start : start + _MEMBERS_PER_MESSAGE])
                yield self._message(command, name, line, part)

    def _message(self, command: int, name: str, *parts: bytes) -> Message:
        # Without NLM_F_EXCL an addition of an existing member, or of an existing set, is not an error.
        body = self._body(text_attribute(IpsetAttr.SETNAME, self.prefix + name), *parts)
        return Message(NfnlSubsys.IPSET << 8 | command, 0, body)

    def _body(self, *parts: bytes) -> bytes:
        # Behind PROTOCOL and SETNAME, a message that creates a set has TYPENAME, REVISION, FAMILY, and DATA with limits and
        # flags. A message that changes members, and an answer to LIST, has LINENO and ADT, with one DATA for each member.
        version = attribute(IpsetAttr.PROTOCOL, bytes([IPSET_PROTOCOL]))
        return nfgenmsg(self.family.socket_family) + version + b"".join(parts)


def _parse_member(data: memoryview, start: int, end: int, name: str) -> tuple[Member, str]:
    ip, protocol, port, comment = b"", 0, 0, ""
    network_ip, prefix = b"", 0
    for kind, left, right in attributes(data, start, end):
        # An address is behind the header of the attribute that is nested in it.
        if kind == _IP:
            ip = bytes(data[left + ATTRIBUTE.size : right])
        elif kind == _PORT:
            port = int.from_bytes(data[left:right])
        elif kind == _PROTO:
            protocol = data[left]
        elif kind == _IP2:
            network_ip = bytes(data[left + ATTRIBUTE.size : right])
        elif kind == _CIDR2:
            prefix = data[left]
        elif kind == _COMMENT:
            comment = bytes(data[left:right]).rstrip(b"\0").decode(errors="replace")
    return Member(name, ip, protocol, port, Network(network_ip, prefix) if network_ip else None), comment


_TYPES = {kind.value[0]: kind for kind in IpsetType}


def ipvs_sets(family: Family) -> tuple[IpSets, dict[str, IpsetType]]:
    """Return the sets of a family in this mode, and their types by name."""
    return IpSets(family, set_prefix(family)), {name: _TYPES[kind] for name, kind in SET_TYPES.items()}
