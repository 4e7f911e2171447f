"""Reads and writes virtual servers and real servers of IPVS, by generic netlink (`linux.uapi.ip_vs` has the attributes).

A message body is packed with one or two structs, because packing attribute by attribute, as netlink libraries do, takes
most of the time of a large change.
"""

import errno
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

from pyproxy.backends.ipvs.entries import RealServer, RealServerState, Scheduling, VirtualServer
from pyproxy.errors import ApplyError
from pyproxy.linux.netlink import (
    ATTRIBUTE,
    NESTED,
    Closeable,
    Message,
    NetlinkSocket,
    attribute,
    attribute_values,
    attributes,
    host_number,
    nest,
    parsing,
    text_attribute,
)
from pyproxy.linux.uapi.genetlink import CtrlAttr, CtrlCmd, GenlId
from pyproxy.linux.uapi.ip_vs import IpvsCmd, IpvsCmdAttr, IpVsConnF, IpvsDestAttr, IpvsSvcAttr, IpVsSvcF
from pyproxy.linux.uapi.netlink import NetlinkProtocol
from pyproxy.model.address import Family, family_of, parse_ip
from pyproxy.model.endpoint import Endpoint
from pyproxy.model.names import PROTOCOLS

# struct genlmsghdr (`linux/genetlink.h`), the first part of the body: u8 command, u8 version, 2 bytes of padding
_GENL = struct.Struct("=BBxx")
_VERSION = 1
_IPV6_BYTES = 16
_PROC = Path("/proc/net/ip_vs")
_NO_TIME = 0
# Persistence for single client addresses: a mask in IPv4, a prefix length in IPv6.
_NETMASK = {Family.IPV4: 0xFFFFFFFF, Family.IPV6: 128}
_PROC_PROTOCOLS = {protocol.name: number for number, protocol in PROTOCOLS.items()}
# The object does not exist yet, or exists already; with ESRCH the kernel means a virtual server that does not exist.
_ABSENT = (errno.ENOENT, errno.ESRCH)
_IN_THE_WAY = (errno.EEXIST, *_ABSENT)


def _header(kind: int, value_bytes: int) -> bytes:
    return ATTRIBUTE.pack(ATTRIBUTE.size + value_bytes, kind)


# The headers of attributes with values of a fixed size do not change, so they are packed once; x is padding.
# AF, PROTOCOL, ADDR and PORT, which identify a virtual server: four headers and values. To create or change one, SCHED_NAME
# and the attributes below follow, all inside SERVICE.
_IDENTITY = struct.Struct("=4sH2x4sH2x4s16s4s2s2x")
_SERVICE_HEADER = _header(IpvsCmdAttr.SERVICE | NESTED, _IDENTITY.size)
_AF = _header(IpvsSvcAttr.AF, 2)
_PROTOCOL = _header(IpvsSvcAttr.PROTOCOL, 2)
_ADDR = _header(IpvsSvcAttr.ADDR, _IPV6_BYTES)
_PORT = _header(IpvsSvcAttr.PORT, 2)
_SCHEDULING = struct.Struct("=4sII4sI4sI")  # flags with their mask, time-out and netmask of a virtual server
_FLAGS = _header(IpvsSvcAttr.FLAGS, 8)
_TIMEOUT = _header(IpvsSvcAttr.TIMEOUT, 4)
_SVC_NETMASK = _header(IpvsSvcAttr.NETMASK, 4)
_ALL_FLAGS = 0xFFFFFFFF
# A whole DEST: its header, address family, address, port, forwarding method, weight, upper and lower threshold.
_REAL = struct.Struct("=4s4sH2x4s16s4s2s2x4sI4sI4sI4sI")
_DEST_HEADER = _header(IpvsCmdAttr.DEST | NESTED, _REAL.size - ATTRIBUTE.size)
_DEST_FAMILY = _header(IpvsDestAttr.ADDR_FAMILY, 2)
_DEST_ADDR = _header(IpvsDestAttr.ADDR, _IPV6_BYTES)
_DEST_PORT = _header(IpvsDestAttr.PORT, 2)
_DEST_METHOD = _header(IpvsDestAttr.FWD_METHOD, 4)
_DEST_WEIGHT = _header(IpvsDestAttr.WEIGHT, 4)
_DEST_UPPER = _header(IpvsDestAttr.U_THRESH, 4)
_DEST_LOWER = _header(IpvsDestAttr.L_THRESH, 4)
_MASQUERADE = int(IpVsConnF.MASQ)


class IpvsConnection(Closeable):
    """A socket to the IPVS of this network namespace. One thread at a time may use it."""

    def __init__(self) -> None:
        """Open the socket.

        Raises:
            OSError: ENOENT if the kernel has no IPVS.
        """
        self._netlink = NetlinkSocket(NetlinkProtocol.GENERIC)
        # Generic netlink families get their message type when the module is loaded, so it is looked up by name.
        body = _GENL.pack(CtrlCmd.GETFAMILY, _VERSION) + text_attribute(CtrlAttr.FAMILY_NAME, "IPVS")
        try:
            with parsing():
                answer = self._netlink.ask(GenlId.CTRL, body, header=_GENL.size)
                self._type = host_number(attribute_values(*answer)[CtrlAttr.FAMILY_ID])
        except OSError:
            self._netlink.close()
            raise

    def close(self) -> None:
        """Close the socket."""
        self._netlink.close()

    def add(self, virtual: VirtualServer, how: Scheduling) -> Message:
        """Return the request to create a virtual server."""
        return self._message(IpvsCmd.NEW_SERVICE, _service(virtual, how))

    def change(self, virtual: VirtualServer, how: Scheduling) -> Message:
        """Return the request to change a virtual server in place."""
        return self._message(IpvsCmd.SET_SERVICE, _service(virtual, how))

    def delete(self, virtual: VirtualServer) -> Message:
        """Return the request to delete a virtual server with its real servers."""
        return self._message(IpvsCmd.DEL_SERVICE, _SERVICE_HEADER + _identity(virtual))

    def add_real(self, real: RealServer, weight: int, since: int = _NO_TIME) -> Message:
        """Return the request to create a real server; for `since` see `RealServerState`."""
        return self._real_message(IpvsCmd.NEW_DEST, real, weight, since)

    def change_real(self, real: RealServer, weight: int, since: int = _NO_TIME) -> Message:
        """Return the request to change a real server in place; for `since` see `RealServerState`."""
        return self._real_message(IpvsCmd.SET_DEST, real, weight, since)

    def delete_real(self, real: RealServer) -> Message:
        """Return the request to delete a real server."""
        return self._real_message(IpvsCmd.DEL_DEST, real, 0, _NO_TIME)

    def timeouts(self, tcp: int, tcp_fin: int, udp: int) -> Message:
        """Return the request to set the time-outs of connections, in seconds; 0 keeps the kernel's value."""
        values = (
            (IpvsCmdAttr.TIMEOUT_TCP, tcp),
            (IpvsCmdAttr.TIMEOUT_TCP_FIN, tcp_fin),
            (IpvsCmdAttr.TIMEOUT_UDP, udp),
        )
        # The kernel ignores a time-out of 0 (`ip_vs_ctl.c`, ip_vs_set_timeout).
        body = b"".join(attribute(kind, struct.pack("=I", value)) for kind, value in values)
        return self._message(IpvsCmd.SET_CONFIG, body)

    def perform(self, *alternatives: list[Message]) -> None:
        """Send requests. One that is refused because an object exists, or does not, is sent again in its next form.

        Args:
            alternatives: lists of the same length: the requests to send first, and those to send instead.

        Raises:
            IpvsRefusedError: a request was refused in its last form, or for another reason.
        """
        pending, *rest = alternatives
        refusals = self._netlink.send(pending)
        # Asking for each object first would double the messages, and the answer could be outdated.
        for further in rest:
            retried = [refusal.at for refusal in refusals if refusal.code in _IN_THE_WAY]
            final = [refusal for refusal in refusals if refusal.code not in _IN_THE_WAY]
            again = self._netlink.send([further[index] for index in retried])
            refusals = final + [refusal._replace(at=retried[refusal.at]) for refusal in again]
        if refusals:
            raise IpvsRefusedError(refusals[0].at, refusals[0].code, refusals[0].text)

    def perform_deletes(self, messages: list[Message]) -> None:
        """Send requests, and ignore refusals because the object does not exist any more.

        Raises:
            IpvsRefusedError: one was refused for another reason.
        """
        for refusal in self._netlink.send(messages):
            if refusal.code not in _ABSENT:
                raise IpvsRefusedError(refusal.at, refusal.code, refusal.text)

    def services(self, family: Family) -> Iterator[tuple[VirtualServer, Scheduling]]:
        """Yield every virtual server of a family, except for those by firewall mark: pyproxy creates none of them."""
        body = _GENL.pack(IpvsCmd.GET_SERVICE, _VERSION)
        with parsing():
            for data, start, end in self._netlink.dump(self._type, body, header=_GENL.size):
                for kind, left, right in attributes(data, start, end):
                    found = attribute_values(data, left, right) if kind == IpvsCmdAttr.SERVICE else {}
                    if (
                        not found
                        or host_number(found[IpvsSvcAttr.AF]) != family.socket_family
                        or IpvsSvcAttr.FWMARK in found
                    ):
                        continue
                    ip = bytes(found[IpvsSvcAttr.ADDR][: family.bits // 8])
                    port = int.from_bytes(found[IpvsSvcAttr.PORT])
                    # The value is followed by a mask. The kernel sets the flag HASHED by itself.
                    flags = host_number(found[IpvsSvcAttr.FLAGS][:4]) & ~IpVsSvcF.HASHED
                    # Without persistence the kernel keeps a time-out that has no effect.
                    timeout = host_number(found[IpvsSvcAttr.TIMEOUT]) if flags & IpVsSvcF.PERSISTENT else 0
                    scheduler = bytes(found[IpvsSvcAttr.SCHED_NAME]).rstrip(b"\0").decode()
                    virtual = VirtualServer(ip, host_number(found[IpvsSvcAttr.PROTOCOL]), port)
                    yield virtual, Scheduling(scheduler, flags, timeout)

    def reals(self, virtual: VirtualServer) -> Iterator[tuple[Endpoint, RealServerState]]:
        """Yield the real servers of one virtual server; none if it does not exist."""
        body = _GENL.pack(IpvsCmd.GET_DEST, _VERSION) + _SERVICE_HEADER + _identity(virtual)
        try:
            with parsing():
                for data, start, end in self._netlink.dump(self._type, body, header=_GENL.size):
                    for kind, left, right in attributes(data, start, end):
                        if kind == IpvsCmdAttr.DEST:
                            found = attribute_values(data, left, right)
                            ip = bytes(found[IpvsDestAttr.ADDR][: len(virtual.ip)])
                            state = RealServerState(
                                weight=host_number(found[IpvsDestAttr.WEIGHT]),
                                active=host_number(found[IpvsDestAttr.ACTIVE_CONNS]),
                                inactive=host_number(found[IpvsDestAttr.INACT_CONNS]),
                                since=host_number(found[IpvsDestAttr.U_THRESH]),
                            )
                            yield Endpoint(ip, int.from_bytes(found[IpvsDestAttr.PORT])), state
        except OSError as error:
            if error.errno not in _ABSENT:
                raise

    def all_reals(
        self, virtuals: Iterable[VirtualServer], family: Family
    ) -> Iterator[tuple[RealServer, RealServerState]]:
        """Yield the real servers of many virtual servers, without the time when they got weight 0; for that see `reals`.

        By netlink the real servers of each virtual server need a dump of their own, so they are read from
        ``/proc/net/ip_vs``, which has all of them. It is read a page at a time, and between two pages the kernel skips as
        many virtual servers as other network namespaces have (`ip_vs_ctl.c`: ip_vs_info_seq_next counts all,
        ip_vs_info_array only those of the namespace). Those that are missing there are read by netlink.
        """
        listed = _proc_reals(family)
        for virtual in virtuals:
            for endpoint, state in listed[virtual] if virtual in listed else self.reals(virtual):
                yield RealServer(virtual, endpoint), state

    def _real_message(self, command: int, real: RealServer, weight: int, since: int) -> Message:
        endpoint = real.endpoint
        destination = _REAL.pack(
            _DEST_HEADER,
            *(_DEST_FAMILY, family_of(endpoint.ip).socket_family),
            *(_DEST_ADDR, endpoint.ip),
            *(_DEST_PORT, endpoint.port.to_bytes(2)),
            *(_DEST_METHOD, _MASQUERADE),
            *(_DEST_WEIGHT, weight),
            # Above the upper threshold of connections a real server gets no new ones. With weight 0 it gets none anyway, so
            # the field has room for a time stamp, which survives a restart of the agent.
            *(_DEST_UPPER, since),
            *(_DEST_LOWER, 0),
        )
        return self._message(command, _SERVICE_HEADER + _identity(real.virtual) + destination)

    def _message(self, command: int, body: bytes) -> Message:
        return Message(self._type, 0, _GENL.pack(command, _VERSION) + body)


class IpvsRefusedError(ApplyError):
    """The kernel refused one request of several; `index` is its position."""

    def __init__(self, index: int, code: int, text: str) -> None:
        super().__init__(text, retryable=code in (errno.ENOMEM, errno.ENOBUFS, errno.EPERM, errno.EINTR))
        self.index = index
        self.code = code


def _proc_reals(family: Family) -> dict[VirtualServer, list[tuple[Endpoint, RealServerState]]]:
    # A line is ``TCP 0A60000A:0050 rr`` for a virtual server, ``FWM 00000001 rr`` for one by firewall mark, and `` ->
    # 0A000001:1F90 Masq 1 0 0`` for a real server: method, weight, active and inactive connections. An IPv6 address is
    # written as ``[fd00:0000:…]``.
    def socket_address(text: str) -> tuple[bytes, int]:
        address, _, port = text.rpartition(":")
        ip = parse_ip(address[1:-1]) if address.startswith("[") else bytes.fromhex(address)
        return ip, int(port, 16)

    found: dict[VirtualServer, list[tuple[Endpoint, RealServerState]]] = {}
    reals: list[tuple[Endpoint, RealServerState]] = []
    # The first three lines are headings.
    for line in _PROC.read_text().splitlines()[3:]:
        words = line.split()
        if words[0] == "->":
            weight, active, inactive = map(int, words[3:6])
            reals.append((Endpoint(*socket_address(words[1])), RealServerState(weight, active, inactive, _NO_TIME)))
            continue
        # Real servers of virtual servers that are not wanted go into a list that is dropped.
        reals = []
        protocol = _PROC_PROTOCOLS.get(words[0])
        if protocol is not None:
            ip, port = socket_address(words[1])
            if family_of(ip) is family:
                found[VirtualServer(ip, protocol, port)] = reals
    return found


def _identity(virtual: VirtualServer) -> bytes:
    return _IDENTITY.pack(
        *(_AF, family_of(virtual.ip).socket_family),
        *(_PROTOCOL, virtual.protocol),
        *(_ADDR, virtual.ip),
        *(_PORT, virtual.port.to_bytes(2)),
    )


def _service(virtual: VirtualServer, how: Scheduling) -> bytes:
    scheduling = _SCHEDULING.pack(
        *(_FLAGS, how.flags, _ALL_FLAGS),
        *(_TIMEOUT, how.timeout),
        *(_SVC_NETMASK, _NETMASK[family_of(virtual.ip)]),
    )
    name = text_attribute(IpvsSvcAttr.SCHED_NAME, how.scheduler)
    return nest(IpvsCmdAttr.SERVICE, _identity(virtual), name, scheduling)
