"""VIPs: addresses of Services, as local routes over the device kube-ipvs0.

IPVS only sees packets that are delivered to this node, so the node has to own the addresses. kube-proxy binds each address to
the device, which takes time that grows with the number of addresses that are bound already: 30,000 take half a minute. A
route of type "local" has the same effect, takes the same time however many there are, and names the source address for
packets of the node itself (docs/decisions/020-ipvs-local-routes.md).
"""

import errno
import fcntl
import socket
import struct
from collections.abc import Collection

from pyproxy.errors import ApplyError
from pyproxy.linux.addresses import IPVS_DEVICE as DEVICE
from pyproxy.linux.addresses import device_addresses, device_index
from pyproxy.linux.netlink import (
    APPEND,
    CREATE,
    EXCL,
    Closeable,
    Message,
    NetlinkSocket,
    attribute,
    attribute_values,
    host_number,
    nest,
    parsing,
    text_attribute,
)
from pyproxy.linux.sysctl import write_sysctl
from pyproxy.linux.uapi.if_addr import IFADDRMSG, Ifa
from pyproxy.linux.uapi.if_link import Ifla, IflaInfo, In6AddrGenMode
from pyproxy.linux.uapi.netlink import NetlinkProtocol, NlmFNew
from pyproxy.linux.uapi.rtnetlink import IFINFOMSG, RTMSG, Rta, Rtm, Rtn, Rtprot, RtScope, RtTable
from pyproxy.model.address import Family

_INDEX = struct.Struct("=I")
_UP = 0x1  # IFF_UP of `linux/if.h`
_SIOCGIFFLAGS = 0x8913  # `linux/sockios.h`: reads the flags of a device
# struct ifreq: the name, and of the union behind it the flags
_IFREQ = struct.Struct("=16sh22x")
# Constants of the module, because reading a member from its class takes ten times as long, and there are many routes.
_DST, _OIF, _PREFSRC = Rta.DST, Rta.OIF, Rta.PREFSRC
_LOCAL_TABLE, _STATIC, _HOST, _LOCAL = RtTable.LOCAL, Rtprot.STATIC, RtScope.HOST, Rtn.LOCAL


class Vips(Closeable):
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
        new = IFINFOMSG.pack(0, 0, 0, 0, 0) + name + info
        self._perform([Message(Rtm.NEWLINK, CREATE | EXCL, new)], (errno.EEXIST,))
        # Without a link-local address, so that no program takes the device for a way out of the node.
        write_sysctl(f"net/ipv6/conf/{DEVICE}/addr_gen_mode", In6AddrGenMode.NONE)
        self._perform([Message(Rtm.NEWLINK, 0, IFINFOMSG.pack(0, 0, device_index(DEVICE), _UP, _UP))])

    @parsing()
    def read(self) -> dict[bytes, bytes]:
        """Return our VIPs, each with its source address; it is empty if the route names none."""
        index = device_index(DEVICE)
        if not index:
            return {}
        body = RTMSG.pack(self._family.socket_family, 0, 0, 0, 0, _STATIC, 0, _LOCAL, 0)
        # The kernel filters by table and device, if the socket has strict checking (Linux 4.20). Older kernels return all
        # routes, so each one is checked.
        body += attribute(Rta.TABLE, struct.pack("=I", _LOCAL_TABLE)) + attribute(_OIF, _INDEX.pack(index))
        routes = {}
        for data, start, end in self._netlink.dump(Rtm.GETROUTE, body, header=RTMSG.size):
            _, _, _, _, _, protocol, _, kind, _ = RTMSG.unpack_from(data, start - RTMSG.size)
            found = attribute_values(data, start, end)
            # Routes that the kernel creates for bound addresses have the protocol RTPROT_KERNEL.
            if protocol == _STATIC and kind == _LOCAL and host_number(found.get(_OIF, b"")) == index and _DST in found:
                routes[bytes(found[_DST])] = bytes(found.get(_PREFSRC, b""))
        return routes

    def add(self, sources: dict[bytes, bytes]) -> None:
        """Add VIPs with their source addresses, or change the source addresses of VIPs that exist.

        Raises:
            ApplyError: a route was refused.
        """
        index = device_index(DEVICE)
        # The source address is not a part of a route's identity, so REPLACE changes it in place.
        flags = CREATE | NlmFNew.REPLACE
        self._perform([Message(Rtm.NEWROUTE, flags, self._route(ip, index, sources[ip])) for ip in sources])

    def delete(self, ips: Collection[bytes]) -> None:
        """Delete VIPs. One that does not exist is skipped."""
        index = device_index(DEVICE)
        messages = [Message(Rtm.DELROUTE, 0, self._route(ip, index, b"")) for ip in ips]
        if index:
            self._perform(messages, (errno.ESRCH,))

    def unbind(self, ips: Collection[bytes]) -> None:
        """Remove bound addresses from the device. One that is not bound is skipped. Our routes are kept."""
        # With the last IPv4 address of a device the kernel removes all IPv4 routes over it (`fib_frontend.c`, fib_disable_ip).
        # So during the removal the same routes lead over lo as well, and no packet is lost.
        routes = self.read() if ips and self._family is Family.IPV4 else {}
        loopback = socket.if_nametoindex("lo")
        self._perform([Message(Rtm.NEWROUTE, CREATE | APPEND, self._route(ip, loopback, routes[ip])) for ip in routes])
        index = device_index(DEVICE)
        messages = []
        for ip in ips:
            head = IFADDRMSG.pack(self._family.socket_family, len(ip) * 8, 0, 0, index)
            messages.append(Message(Rtm.DELADDR, 0, head + attribute(Ifa.LOCAL, ip) + attribute(Ifa.ADDRESS, ip)))
        self._perform(messages, (errno.EADDRNOTAVAIL,))
        if routes:
            self.add(routes)
        self._perform([Message(Rtm.DELROUTE, 0, self._route(ip, loopback, b"")) for ip in routes], (errno.ESRCH,))

    def _perform(self, messages: list[Message], accepted: Collection[int] = ()) -> None:
        for refusal in self._netlink.send(messages):
            if refusal.code not in accepted:
                hint = ": the kernel module dummy is not available" if refusal.code == errno.EOPNOTSUPP else ""
                message = f"{DEVICE}: {refusal.text}{hint}"
                raise ApplyError(message, retryable=refusal.code in (errno.ENETDOWN, errno.ENODEV, errno.ENOMEM))

    def _route(self, ip: bytes, index: int, source: bytes) -> bytes:
        # RTPROT_STATIC distinguishes our routes from those of the kernel.
        family, prefix = self._family.socket_family, len(ip) * 8
        head = RTMSG.pack(family, prefix, 0, 0, _LOCAL_TABLE, _STATIC, _HOST, _LOCAL, 0)
        route = head + attribute(_DST, ip) + attribute(_OIF, _INDEX.pack(index))
        return route + attribute(_PREFSRC, source) if source else route


def bound_ips(family: Family) -> set[bytes]:
    """Return the addresses that are bound to the device, which kube-proxy does and pyproxy does not.

    Raises:
        ApplyError: they cannot be read.
    """
    index = device_index(DEVICE)
    return {ip for _, ip in device_addresses(family, index)} if index else set()


def is_up() -> bool:
    """Return whether the device exists and is up, within microseconds."""
    # By ioctl, because /sys shows the devices of the network namespace that it was mounted in.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as any_socket:
        try:
            answer = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, _IFREQ.pack(DEVICE.encode(), 0))
        except OSError:
            return False
    return bool(_IFREQ.unpack(answer)[1] & _UP)
