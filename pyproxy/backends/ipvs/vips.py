"""VIPs: addresses of Services, as local routes over the device kube-ipvs0.

IPVS only sees packets that are delivered to this node, so the node has to own the addresses. kube-proxy binds each address to
the device, which takes time that grows with the number of addresses that are bound already: 30,000 take half a minute. A
route of type "local" has the same effect, takes the same time however many there are, and names the source address for
packets of the node itself.

Layout of the messages (`linux/rtnetlink.h`, `if_link.h`, `if_addr.h`), each followed by attributes:

    ifinfomsg  u8 family, padding, u16 device type, i32 index, u32 flags, u32 mask of the flags to change
    rtmsg      u8 family, destination and source prefix, TOS, table, protocol (what created it), scope, type; u32 flags
    ifaddrmsg  u8 family, prefix, flags, scope; i32 index of the device
"""

import errno
import fcntl
import socket
import struct
from collections.abc import Collection, Iterator
from contextlib import closing

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
from pyproxy.linux.uapi.if_addr import Ifa
from pyproxy.linux.uapi.if_link import Ifla, IflaInfo, In6AddrGenMode
from pyproxy.linux.uapi.netlink import NetlinkProtocol, NlmFNew
from pyproxy.linux.uapi.rtnetlink import Rta, Rtm, Rtn, Rtprot, RtScope, RtTable
from pyproxy.model.address import Family

_LINK = struct.Struct("=BxHiII")
_ROUTE = struct.Struct("=BBBBBBBBI")
_ADDRESS = struct.Struct("=BBBBi")
_INDEX = struct.Struct("=i")
_UP = 0x1
"""IFF_UP of `linux/if.h`."""
_SIOCGIFFLAGS = 0x8913
"""`linux/sockios.h`: reads the flags of a device."""
_IFREQ = struct.Struct("=16sh22x")
"""struct ifreq: name and flags."""
# Constants of the module, because reading a member from its class takes ten times as long, and there are many routes.
_DST, _OIF, _PREFSRC = Rta.DST, Rta.OIF, Rta.PREFSRC
_LOCAL_TABLE, _STATIC, _HOST, _LOCAL = RtTable.LOCAL, Rtprot.STATIC, RtScope.HOST, Rtn.LOCAL


class Vips:
    """The VIPs of one family, in this network namespace."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._netlink = NetlinkSocket(NetlinkProtocol.ROUTE)

    def close(self) -> None:
        """Close the socket."""
        self._netlink.close()

    def ensure_device(self) -> None:
        """Create the device unless it exists, and set it up: the kernel accepts routes over such devices only.

        Raises:
            ApplyError: it cannot be created; EOPNOTSUPP means that the kernel has no dummy devices.
        """
        if is_up():
            return
        name = text_attribute(Ifla.IFNAME, DEVICE)
        info = nest(Ifla.LINKINFO, text_attribute(IflaInfo.KIND, "dummy"))
        new = _LINK.pack(0, 0, 0, 0, 0) + name + info
        self._perform([Message(Rtm.NEWLINK, CREATE | EXCL, new)], (errno.EEXIST,))
        # Without a link-local address, so that no program takes the device for a way out of the node.
        write_sysctl(f"net/ipv6/conf/{DEVICE}/addr_gen_mode", In6AddrGenMode.NONE)
        self._perform([Message(Rtm.NEWLINK, 0, _LINK.pack(0, 0, _index(), _UP, _UP))])

    def remove_device(self) -> None:
        """Delete the device if it exists, with all routes and addresses of both families."""
        if index := _index():
            self._perform([Message(Rtm.DELLINK, 0, _LINK.pack(0, 0, index, 0, 0))], (errno.ENODEV,))

    def read(self) -> dict[bytes, bytes]:
        """Return our VIPs, each with its source address; it is empty if the route names none."""
        index = _index()
        if not index:
            return {}
        body = _ROUTE.pack(self._family.socket_family, 0, 0, 0, 0, _STATIC, 0, _LOCAL, 0)
        # The kernel filters by table and device, if the socket has strict checking (Linux 4.20). Older kernels return all
        # routes, so each one is checked.
        body += attribute(Rta.TABLE, struct.pack("=I", _LOCAL_TABLE)) + attribute(_OIF, _INDEX.pack(index))
        routes = {}
        for data, start, end in self._netlink.dump(Rtm.GETROUTE, body, header=_ROUTE.size):
            _, _, _, _, _, protocol, _, kind, _ = _ROUTE.unpack_from(data, start - _ROUTE.size)
            found = {rta: bytes(data[left:right]) for rta, left, right in attributes(data, start, end)}
            # Routes that the kernel creates for bound addresses have the protocol RTPROT_KERNEL.
            is_ours = protocol == _STATIC and kind == _LOCAL
            if is_ours and found.get(_OIF) == _INDEX.pack(index) and _DST in found:
                routes[found[_DST]] = found.get(_PREFSRC, b"")
        return routes

    def bound(self) -> set[bytes]:
        """Return the addresses that are bound to the device, which kube-proxy does and pyproxy does not."""
        index = _index()
        if not index:
            return set()
        return {ip for device, ip in _bound_addresses(self._netlink, self._family, index) if device == index}

    def add(self, sources: dict[bytes, bytes]) -> None:
        """Add VIPs with their source addresses, or change the source addresses of VIPs that exist.

        Raises:
            ApplyError: a route was refused.
        """
        index = _index()
        flags = CREATE | NlmFNew.REPLACE
        self._perform([Message(Rtm.NEWROUTE, flags, self._route(ip, index, sources[ip])) for ip in sources])

    def delete(self, ips: Collection[bytes]) -> None:
        """Delete VIPs. One that does not exist is skipped."""
        index = _index()
        messages = [Message(Rtm.DELROUTE, 0, self._route(ip, index, b"")) for ip in ips]
        if index:
            self._perform(messages, (errno.ESRCH,))

    def unbind(self, ips: Collection[bytes]) -> None:
        """Remove bound addresses from the device. One that is not bound is skipped. Our routes are kept.

        With the last IPv4 address of a device the kernel removes all IPv4 routes over it (`fib_frontend.c`, fib_disable_ip).
        So during the removal the same routes lead over lo as well, and no packet is lost.
        """
        routes = self.read() if ips and self._family is Family.IPV4 else {}
        loopback = socket.if_nametoindex("lo")
        self._perform([Message(Rtm.NEWROUTE, CREATE | APPEND, self._route(ip, loopback, routes[ip])) for ip in routes])
        index = _index()
        messages = []
        for ip in ips:
            head = _ADDRESS.pack(self._family.socket_family, len(ip) * 8, 0, 0, index)
            messages.append(Message(Rtm.DELADDR, 0, head + attribute(Ifa.LOCAL, ip) + attribute(Ifa.ADDRESS, ip)))
        self._perform(messages, (errno.EADDRNOTAVAIL,))
        if routes:
            self.add(routes)
        self._perform([Message(Rtm.DELROUTE, 0, self._route(ip, loopback, b"")) for ip in routes], (errno.ESRCH,))

    def _perform(self, messages: list[Message], accepted: Collection[int] = ()) -> None:
        for refusal in self._netlink.send(messages):
            if refusal.code not in accepted:
                hint = ": the kernel has no module dummy" if refusal.code == errno.EOPNOTSUPP else ""
                message = f"{DEVICE}: {refusal.text}{hint}"
                raise ApplyError(message, retryable=refusal.code in (errno.ENETDOWN, errno.ENODEV, errno.ENOMEM))

    def _route(self, ip: bytes, index: int, source: bytes) -> bytes:
        # RTPROT_STATIC distinguishes our routes from those of the kernel.
        family, prefix = self._family.socket_family, len(ip) * 8
        head = _ROUTE.pack(family, prefix, 0, 0, _LOCAL_TABLE, _STATIC, _HOST, _LOCAL, 0)
        route = head + attribute(_DST, ip) + attribute(_OIF, _INDEX.pack(index))
        return route + attribute(_PREFSRC, source) if source else route


def devices_with_addresses(family: Family) -> set[str]:
    """Return the names of the devices that have an address of the family."""
    with closing(NetlinkSocket(NetlinkProtocol.ROUTE)) as netlink:
        indexes = {index for index, _ in _bound_addresses(netlink, family)}
    return {socket.if_indextoname(index) for index in indexes}


def node_addresses(family: Family) -> set[bytes]:
    """Return the addresses of the node in a family: those of all devices except kube-ipvs0."""
    with closing(NetlinkSocket(NetlinkProtocol.ROUTE)) as netlink:
        return {ip for index, ip in _bound_addresses(netlink, family) if index != _index()}


def _bound_addresses(netlink: NetlinkSocket, family: Family, index: int = 0) -> Iterator[tuple[int, bytes]]:
    """Yield the device and the address, for one device or (index 0) for all."""
    body = _ADDRESS.pack(family.socket_family, 0, 0, 0, index)
    for data, start, end in netlink.dump(Rtm.GETADDR, body, header=_ADDRESS.size):
        found = {kind: bytes(data[left:right]) for kind, left, right in attributes(data, start, end)}
        device: int = _ADDRESS.unpack_from(data, start - _ADDRESS.size)[4]
        yield device, found.get(Ifa.LOCAL) or found[Ifa.ADDRESS]


def is_up() -> bool:
    """Return whether the device exists and is up, within microseconds."""
    # By ioctl, because /sys shows the devices of the network namespace that it was mounted in.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as any_socket:
        try:
            answer = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, _IFREQ.pack(DEVICE.encode(), 0))
        except OSError:
            return False
    return bool(_IFREQ.unpack(answer)[1] & _UP)


def _index() -> int:
    """Return the index of the device; 0: it does not exist."""
    try:
        return socket.if_nametoindex(DEVICE)
    except OSError:
        return 0
