"""Virtual and real servers by generic netlink: one socket, hand-packed messages (`linux/ip_vs.h`).

One structure for a whole message body, because general netlink libraries pack attribute by attribute.
Real servers come from ``/proc/net/ip_vs`` in one go: by netlink those of each virtual server are a dump of their own.
"""

import errno
import struct
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from pyproxy.backends.ipvs.entries import RealServer, RealServerState, Scheduling, VirtualServer
from pyproxy.errors import ApplyError
from pyproxy.linux.netlink import Message, NetlinkSocket, attribute, attributes, nest, text_attribute
from pyproxy.model.address import Family, IPv4_BYTES, family_of, parse_ip
from pyproxy.model.endpoint import Endpoint

_NETLINK_GENERIC = 16
_GENL_ID_CTRL, _CTRL_GETFAMILY, _CTRL_FAMILY_ID, _CTRL_FAMILY_NAME = 16, 3, 1, 2
_NEW_SERVICE, _SET_SERVICE, _DEL_SERVICE, _GET_SERVICE = 1, 2, 3, 4
_NEW_DEST, _SET_DEST, _DEL_DEST, _GET_DEST = 5, 6, 7, 8
_SET_CONFIG = 12
_SERVICE, _DEST = 1, 2
_TIMEOUT_TCP, _TIMEOUT_TCP_FIN, _TIMEOUT_UDP = 4, 5, 6
_SVC_AF, _SVC_PROTOCOL, _SVC_ADDR, _SVC_PORT, _SVC_FWMARK = 1, 2, 3, 4, 5
_SVC_SCHEDULER, _SVC_FLAGS, _SVC_TIMEOUT, _SVC_NETMASK = 6, 7, 8, 9
_DEST_ADDR, _DEST_PORT, _DEST_WEIGHT, _DEST_UPPER = 1, 2, 4, 5
_DEST_ACTIVE, _DEST_INACTIVE = 7, 8
_HASHED = 0x2
"""A flag that the kernel sets by itself."""

_GENL = struct.Struct("=BBxx")
_PROC = Path("/proc/net/ip_vs")
_NO_TIME = 0
_NETMASK = {Family.IPV4: 0xFFFFFFFF, Family.IPV6: 128}
"""One address, for persistence: a mask in IPv4, a prefix length in IPv6."""
_PROC_PROTOCOLS = {"TCP": 6, "UDP": 17, "SCTP": 132}

# Attribute headers and values in one piece; x is padding. The header of the nest around a service goes in front.
_WHICH = struct.Struct("=HHH2xHHH2xHH16sHH2s2x")
"""Family, protocol, address and port of a virtual server."""
_HOW_FIXED = struct.Struct("=HHIIHHIHHI")
"""Flags with their mask, time-out and netmask."""
_REAL = struct.Struct("=HHHHH2xHH16sHH2s2xHHIHHIHHIHHI")
"""A whole nest: family, address, port, forwarding method, weight, upper and lower threshold."""
_NEST = struct.Struct("=HH")


class IpvsConnection:
    """The IPVS of this network namespace."""

    def __init__(self) -> None:
        """Open the door.

        Raises:
            OSError: ENOENT where the kernel has no IPVS.
        """
        self._netlink = NetlinkSocket(_NETLINK_GENERIC)
        self._type = _family_id(self._netlink)

    def close(self) -> None:
        """Close the door."""
        self._netlink.close()

    def add(self, virtual: VirtualServer, how: Scheduling) -> Message:
        """Return the request to create a virtual server."""
        return self._message(_NEW_SERVICE, _service(virtual, how))

    def change(self, virtual: VirtualServer, how: Scheduling) -> Message:
        """Return the request to change a virtual server in place."""
        return self._message(_SET_SERVICE, _service(virtual, how))

    def delete(self, virtual: VirtualServer) -> Message:
        """Return the request to delete a virtual server with its real servers."""
        return self._message(_DEL_SERVICE, _which(virtual))

    def add_real(self, real: RealServer, weight: int, since: int = _NO_TIME) -> Message:
        """Return the request to create a real server; see `RealServerState` for `since`."""
        return self._message(_NEW_DEST, _which(real.virtual) + _destination(real.endpoint, weight, since))

    def change_real(self, real: RealServer, weight: int, since: int = _NO_TIME) -> Message:
        """Return the request to change a real server in place."""
        return self._message(_SET_DEST, _which(real.virtual) + _destination(real.endpoint, weight, since))

    def delete_real(self, real: RealServer) -> Message:
        """Return the request to delete a real server."""
        return self._message(_DEL_DEST, _which(real.virtual) + _destination(real.endpoint, 0, _NO_TIME))

    def timeouts(self, tcp: int, tcp_fin: int, udp: int) -> Message:
        """Return the request to set the time-outs of connections, in seconds; 0 leaves the kernel's."""
        values = ((_TIMEOUT_TCP, tcp), (_TIMEOUT_TCP_FIN, tcp_fin), (_TIMEOUT_UDP, udp))
        return self._message(_SET_CONFIG, b"".join(attribute(kind, struct.pack("=I", value)) for kind, value in values))

    def perform(self, *alternatives: list[Message]) -> None:
        """Send requests; each that is refused because the thing is there (or is not) again in its next form.

        Args:
            alternatives: lists of the same length: what to send first, and what to send in its place.

        Raises:
            ApplyError: a request was refused in its last form, or for another reason.
        """
        pending, *rest = alternatives
        refusals = self._netlink.send(pending)
        for further in rest:
            retried = [refusal.at for refusal in refusals if refusal.code in _IN_THE_WAY]
            others = [refusal for refusal in refusals if refusal.code not in _IN_THE_WAY]
            again = self._netlink.send([further[index] for index in retried])
            refusals = others + [refusal._replace(at=retried[refusal.at]) for refusal in again]
        if refusals:
            raise IpvsRefusedError(refusals[0].at, refusals[0].code, refusals[0].text)

    def perform_deletes(self, messages: list[Message]) -> None:
        """Send requests to delete; what is gone already is no error.

        Raises:
            ApplyError: one was refused.
        """
        for refusal in self._netlink.send(messages):
            if refusal.code not in (errno.ENOENT, errno.ESRCH):
                raise IpvsRefusedError(refusal.at, refusal.code, refusal.text)

    def services(self, family: Family) -> Iterator[tuple[VirtualServer, Scheduling]]:
        """Yield every virtual server of a family; those by firewall mark are others' business."""
        body = _GENL.pack(_GET_SERVICE, 1)
        for data, start, end in self._netlink.dump(self._type, body, header=_GENL.size):
            for kind, left, right in attributes(data, start, end):
                found = _parse_service(data, left, right, family) if kind == _SERVICE else None
                if found is not None:
                    yield found

    def reals(self, virtual: VirtualServer) -> Iterator[tuple[Endpoint, RealServerState]]:
        """Yield the real servers of one virtual server; nothing where it does not exist."""
        body = _GENL.pack(_GET_DEST, 1) + _which(virtual)
        try:
            for data, start, end in self._netlink.dump(self._type, body, header=_GENL.size):
                for kind, left, right in attributes(data, start, end):
                    if kind == _DEST:
                        yield _parse_destination(data, left, right, virtual)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ESRCH):
                raise

    def all_reals(
        self, virtuals: Iterable[VirtualServer], family: Family
    ) -> Iterator[tuple[RealServer, RealServerState]]:
        """Yield the real servers of many virtual servers. When they got weight 0 is not told here; see `reals`.

        The kernel's list is read a page at a time, and between two pages it skips as many virtual servers as others
        have in the same kernel, in other network namespaces (`ip_vs_ctl.c`: ip_vs_info_seq_next counts all,
        ip_vs_info_array only those of the namespace). Those that it has not are asked for one by one.
        """
        listed = _listed(family)
        for virtual in virtuals:
            for endpoint, state in listed[virtual] if virtual in listed else self.reals(virtual):
                yield RealServer(virtual, endpoint), state

    def _message(self, command: int, body: bytes) -> Message:
        return Message(self._type, 0, _GENL.pack(command, 1) + body)


_IN_THE_WAY = (errno.EEXIST, errno.ENOENT, errno.ESRCH)


class IpvsRefusedError(ApplyError):
    """One request of several was refused; `index` says which."""

    def __init__(self, index: int, code: int, text: str) -> None:
        super().__init__(text, retryable=code in (errno.ENOMEM, errno.ENOBUFS, errno.EPERM, errno.EINTR))
        self.index = index
        self.code = code


def _listed(family: Family) -> dict[VirtualServer, list[tuple[Endpoint, RealServerState]]]:
    """Return the virtual servers of a family that the kernel's list has, with their real servers."""
    found: dict[VirtualServer, list[tuple[Endpoint, RealServerState]]] = {}
    reals: list[tuple[Endpoint, RealServerState]] = []
    # Three lines of headings.
    for line in _PROC.read_text().splitlines()[3:]:
        words = line.split()
        if words[0] == "->":
            weight, active, inactive = map(int, words[3:6])
            reals.append((Endpoint(*_proc_address(words[1])), RealServerState(weight, active, inactive, _NO_TIME)))
        else:
            reals = []
            virtual = _proc_virtual(words, family)
            if virtual is not None:
                found[virtual] = reals
    return found


def _proc_virtual(words: list[str], family: Family) -> VirtualServer | None:
    protocol = _PROC_PROTOCOLS.get(words[0])
    if protocol is None:  # a firewall mark
        return None
    ip, port = _proc_address(words[1])
    return VirtualServer(ip, protocol, port) if family_of(ip) is family else None


def _proc_address(text: str) -> tuple[bytes, int]:
    """Read ``0A60000A:0050`` or ``[fd00::a]:0050``."""
    address, _, port = text.rpartition(":")
    ip = parse_ip(address[1:-1]) if address.startswith("[") else bytes.fromhex(address)
    return ip, int(port, 16)


def _family_id(netlink: NetlinkSocket) -> int:
    body = _GENL.pack(_CTRL_GETFAMILY, 1) + text_attribute(_CTRL_FAMILY_NAME, "IPVS")
    data, start, end = netlink.ask(_GENL_ID_CTRL, body, header=_GENL.size)
    for kind, left, right in attributes(data, start, end):
        if kind == _CTRL_FAMILY_ID:
            return int.from_bytes(data[left:right], sys.byteorder)
    raise OSError(errno.EPROTO, "no number of the family IPVS in the kernel's answer")


def _which_part(virtual: VirtualServer) -> bytes:
    return _WHICH.pack(
        *(6, _SVC_AF, family_of(virtual.ip).socket_family),
        *(6, _SVC_PROTOCOL, virtual.protocol),
        *(20, _SVC_ADDR, virtual.ip),
        *(6, _SVC_PORT, virtual.port.to_bytes(2)),
    )


def _which(virtual: VirtualServer) -> bytes:
    return _NEST.pack(_NEST.size + _WHICH.size, _SERVICE | 0x8000) + _which_part(virtual)


def _service(virtual: VirtualServer, how: Scheduling) -> bytes:
    fixed = _HOW_FIXED.pack(
        *(12, _SVC_FLAGS, how.flags, 0xFFFFFFFF),
        *(8, _SVC_TIMEOUT, how.timeout),
        *(8, _SVC_NETMASK, _NETMASK[family_of(virtual.ip)]),
    )
    return nest(_SERVICE, _which_part(virtual), text_attribute(_SVC_SCHEDULER, how.scheduler), fixed)


def _destination(endpoint: Endpoint, weight: int, since: int) -> bytes:
    return _REAL.pack(
        *(_REAL.size, _DEST | 0x8000),
        *(6, 11, family_of(endpoint.ip).socket_family),
        *(20, _DEST_ADDR, endpoint.ip),
        *(6, _DEST_PORT, endpoint.port.to_bytes(2)),
        *(8, 3, 0),  # forwarding by masquerading
        *(8, _DEST_WEIGHT, weight),
        *(8, _DEST_UPPER, since),
        *(8, 6, 0),
    )


def _parse_service(data: memoryview, start: int, end: int, family: Family) -> tuple[VirtualServer, Scheduling] | None:
    found = {kind: data[left:right] for kind, left, right in attributes(data, start, end)}
    if _SVC_FWMARK in found or _number(found[_SVC_AF]) != family.socket_family:
        return None
    ip = bytes(found[_SVC_ADDR][: IPv4_BYTES if family is Family.IPV4 else 16])
    virtual = VirtualServer(ip, _number(found[_SVC_PROTOCOL]), int.from_bytes(found[_SVC_PORT]))
    flags = _number(found[_SVC_FLAGS][:4]) & ~_HASHED
    # Without persistence the time-out has no meaning.
    timeout = _number(found[_SVC_TIMEOUT]) if flags & 1 else 0
    return virtual, Scheduling(bytes(found[_SVC_SCHEDULER]).rstrip(b"\0").decode(), flags, timeout)


def _parse_destination(
    data: memoryview, start: int, end: int, virtual: VirtualServer
) -> tuple[Endpoint, RealServerState]:
    found = {kind: data[left:right] for kind, left, right in attributes(data, start, end)}
    endpoint = Endpoint(bytes(found[_DEST_ADDR][: len(virtual.ip)]), int.from_bytes(found[_DEST_PORT]))
    numbers = (found[kind] for kind in (_DEST_WEIGHT, _DEST_ACTIVE, _DEST_INACTIVE, _DEST_UPPER))
    return endpoint, RealServerState(*map(_number, numbers))


def _number(value: memoryview) -> int:
    return int.from_bytes(value, sys.byteorder)
