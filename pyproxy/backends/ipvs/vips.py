"""Addresses of Services as local routes on the device kube-ipvs0.

A packet has to be delivered to this node for IPVS to see it. kube-proxy binds every address to the device, which costs
time that grows with the number of addresses bound already: 30,000 take half a minute. A route of type "local" has the same
effect, costs the same however many there are, and names the source address that the node's own packets get.
"""

import errno
import fcntl
import socket
import struct
from collections.abc import Collection, Iterator

from pyproxy.errors import ApplyError
from pyproxy.linux.addresses import IPVS_DEVICE as DEVICE
from pyproxy.linux.netlink import (
    APPEND,
    CREATE,
    EXCL,
    Message,
    NetlinkSocket,
    attribute,
    attributes,
    nest,
    text_attribute,
)
from pyproxy.linux.sysctl import write_sysctl
from pyproxy.model.address import Family

_NETLINK_ROUTE = 0
_NEW_LINK, _DELETE_LINK = 16, 17
_DELETE_ADDRESS, _GET_ADDRESS = 21, 22
_NEW_ROUTE, _DELETE_ROUTE, _GET_ROUTE = 24, 25, 26
_IFLA_IFNAME, _IFLA_LINKINFO, _IFLA_INFO_KIND = 3, 18, 1
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_RTA_DST, _RTA_OIF, _RTA_PREFSRC, _RTA_TABLE = 1, 4, 7, 15
_REPLACE = 0x100
_UP = 0x1
_TABLE_LOCAL, _TYPE_LOCAL, _SCOPE_HOST = 255, 2, 254
_BY_STATIC = 4
"""Routes that the kernel makes for bound addresses say 2 here."""
_LINK = struct.Struct("=BxHiII")
_ROUTE = struct.Struct("=BBBBBBBBI")
_ADDRESS = struct.Struct("=BBBBi")
_NO_GENERATED_ADDRESS = 1
_SIOCGIFFLAGS = 0x8913
_IFREQ = struct.Struct("=16sh22x")


class Vips:
    """The addresses of one family for which this node answers, in this network namespace."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._netlink = NetlinkSocket(_NETLINK_ROUTE)

    def close(self) -> None:
        """Close the door."""
        self._netlink.close()

    def ensure_device(self) -> None:
        """See to it that the device is there and up: routes go only over devices that are.

        Raises:
            ApplyError: it cannot be made; ENODEV and EOPNOTSUPP mean that the kernel has no dummy devices.
        """
        if is_up():
            return
        name = text_attribute(_IFLA_IFNAME, DEVICE)
        info = nest(_IFLA_LINKINFO, text_attribute(_IFLA_INFO_KIND, "dummy"))
        self._perform([Message(_NEW_LINK, CREATE | EXCL, _LINK.pack(0, 0, 0, 0, 0) + name + info)], (errno.EEXIST,))
        # It has no link-local address: nobody shall take it for a way out.
        write_sysctl(f"net/ipv6/conf/{DEVICE}/addr_gen_mode", _NO_GENERATED_ADDRESS)
        self._perform([Message(_NEW_LINK, 0, _LINK.pack(0, 0, _index(), _UP, _UP))])

    def remove_device(self) -> None:
        """Delete the device, if it exists, with all routes and addresses of both families."""
        if index := _index():
            self._perform([Message(_DELETE_LINK, 0, _LINK.pack(0, 0, index, 0, 0))], (errno.ENODEV,))

    def read(self) -> dict[bytes, bytes]:
        """Return our addresses, each with its source address (empty: none named)."""
        index = _index()
        return dict(self._routes(index)) if index else {}

    def bound(self) -> set[bytes]:
        """Return what is bound to the device: kube-proxy's doing."""
        index = _index()
        return set(self._bound(index)) if index else set()

    def add(self, sources: dict[bytes, bytes]) -> None:
        """Answer for addresses, or change their source addresses.

        Raises:
            ApplyError: a route was refused.
        """
        index = _index()
        self._perform([Message(_NEW_ROUTE, CREATE | _REPLACE, self._route(ip, index, sources[ip])) for ip in sources])

    def delete(self, ips: Collection[bytes]) -> None:
        """Answer no longer for addresses; what is gone already is no error."""
        index = _index()
        messages = [Message(_DELETE_ROUTE, 0, self._route(ip, index, b"")) for ip in ips]
        if index:
            self._perform(messages, (errno.ESRCH,))

    def unbind(self, ips: Collection[bytes]) -> None:
        """Take bound addresses off the device; what is gone already is no error. Our routes stay.

        With the last IPv4 address of a device the kernel removes all IPv4 routes over it (`fib_frontend.c`, fib_disable_ip),
        so for that moment the same routes lead over loopback as well.
        """
        routes = self.read() if ips and self._family is Family.IPV4 else {}
        loopback = socket.if_nametoindex("lo")
        self._perform([Message(_NEW_ROUTE, CREATE | APPEND, self._route(ip, loopback, routes[ip])) for ip in routes])
        self._unbind(ips, _index())
        if routes:
            self.add(routes)
        self._perform([Message(_DELETE_ROUTE, 0, self._route(ip, loopback, b"")) for ip in routes], (errno.ESRCH,))

    def _unbind(self, ips: Collection[bytes], index: int) -> None:
        messages = [
            Message(
                _DELETE_ADDRESS,
                0,
                _ADDRESS.pack(self._family.socket_family, len(ip) * 8, 0, 0, index)
                + attribute(_IFA_LOCAL, ip)
                + attribute(_IFA_ADDRESS, ip),
            )
            for ip in ips
        ]
        self._perform(messages, (errno.EADDRNOTAVAIL,))

    def _perform(self, messages: list[Message], passed: Collection[int] = ()) -> None:
        for refusal in self._netlink.send(messages):
            if refusal.code not in passed:
                hint = ": the kernel has no module dummy" if refusal.code == errno.EOPNOTSUPP else ""
                message = f"{DEVICE}: {refusal.text}{hint}"
                raise ApplyError(message, retryable=refusal.code in (errno.ENETDOWN, errno.ENODEV, errno.ENOMEM))

    def _route(self, ip: bytes, index: int, source: bytes) -> bytes:
        parts = [
            self._route_header(len(ip) * 8),
            attribute(_RTA_DST, ip),
            attribute(_RTA_OIF, struct.pack("=i", index)),
        ]
        if source:
            parts.append(attribute(_RTA_PREFSRC, source))
        return b"".join(parts)

    def _route_header(self, prefix: int) -> bytes:
        return _ROUTE.pack(
            self._family.socket_family, prefix, 0, 0, _TABLE_LOCAL, _BY_STATIC, _SCOPE_HOST, _TYPE_LOCAL, 0
        )

    def _routes(self, index: int) -> Iterator[tuple[bytes, bytes]]:
        body = _ROUTE.pack(self._family.socket_family, 0, 0, 0, 0, _BY_STATIC, 0, _TYPE_LOCAL, 0)
        # The kernel looks at one table and at routes over one device only (strict checking, Linux 4.20).
        body += attribute(_RTA_TABLE, struct.pack("=I", _TABLE_LOCAL)) + attribute(_RTA_OIF, struct.pack("=i", index))
        for data, start, end in self._netlink.dump(_GET_ROUTE, body, header=_ROUTE.size):
            found = {kind: bytes(data[left:right]) for kind, left, right in attributes(data, start, end)}
            is_ours = data[start - 7] == _BY_STATIC and data[start - 5] == _TYPE_LOCAL
            if is_ours and found.get(_RTA_OIF) == struct.pack("=i", index) and _RTA_DST in found:
                yield found[_RTA_DST], found.get(_RTA_PREFSRC, b"")

    def _bound(self, index: int) -> Iterator[bytes]:
        return (ip for device, ip in _bound_addresses(self._netlink, self._family, index) if device == index)


def devices_with_addresses(family: Family) -> set[str]:
    """Return the names of the devices that have an address of the family."""
    netlink = NetlinkSocket(_NETLINK_ROUTE)
    try:
        indexes = {index for index, _ in _bound_addresses(netlink, family)}
    finally:
        netlink.close()
    return {socket.if_indextoname(index) for index in indexes}


def node_addresses(family: Family) -> set[bytes]:
    """Return the addresses of the node in a family: those of every device but ours."""
    netlink = NetlinkSocket(_NETLINK_ROUTE)
    try:
        return {ip for index, ip in _bound_addresses(netlink, family) if index != _index()}
    finally:
        netlink.close()


def _bound_addresses(netlink: NetlinkSocket, family: Family, index: int = 0) -> Iterator[tuple[int, bytes]]:
    """Yield device and address, of one device or (index 0) of all."""
    body = _ADDRESS.pack(family.socket_family, 0, 0, 0, index)
    for data, start, end in netlink.dump(_GET_ADDRESS, body, header=_ADDRESS.size):
        found = {kind: bytes(data[left:right]) for kind, left, right in attributes(data, start, end)}
        device: int = struct.unpack_from("=i", data, start - 4)[0]
        yield device, found.get(_IFA_LOCAL) or found[_IFA_ADDRESS]


def is_up() -> bool:
    """Say whether the device is there and up. Cheap."""
    # Not from /sys, which shows the devices of the network namespace in which it was mounted.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as any_socket:
        try:
            answer = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, _IFREQ.pack(DEVICE.encode(), 0))
        except OSError:
            return False
    return bool(_IFREQ.unpack(answer)[1] & _UP)


def _index() -> int:
    try:
        return socket.if_nametoindex(DEVICE)
    except OSError:
        return 0
