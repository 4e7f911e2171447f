"""Devices and addresses of this network namespace, and notifications of changes of addresses, by rtnetlink."""

import asyncio
import errno
import socket
from collections.abc import Callable
from pathlib import Path

from pyproxy.errors import ApplyError
from pyproxy.linux.netlink import Closeable, NetlinkSocket, attribute_values, parsing
from pyproxy.linux.uapi.if_addr import IFADDRMSG, Ifa
from pyproxy.linux.uapi.netlink import NetlinkProtocol
from pyproxy.linux.uapi.rtnetlink import Rtm, Rtmgrp
from pyproxy.model.address import Family

IPVS_DEVICE = "kube-ipvs0"
"""The dummy device that holds the addresses of Services in IPVS mode; kube-proxy uses the same name."""
_IPV6_INTERFACES = Path("/proc/thread-self/net/if_inet6")
_NOTIFICATION_BYTES = 1 << 16
_SOCKET_FAMILIES = frozenset(family.socket_family for family in Family)


def local_addresses() -> frozenset[bytes]:
    """Return every address of every device of this network namespace, up or down, packed.

    The addresses of kube-ipvs0 are left out: they belong to Services, not to the node.

    Raises:
        ApplyError: the addresses cannot be read; a later call may succeed.
    """
    ipvs_device = device_index(IPVS_DEVICE)
    return frozenset(ip for index, ip in device_addresses() if index != ipvs_device)


def interface_addresses(name: str) -> frozenset[bytes]:
    """Return every address of one device, packed; an empty set if the device does not exist.

    Raises:
        ApplyError: the addresses cannot be read; a later call may succeed.
    """
    index = device_index(name)
    return frozenset(ip for _, ip in device_addresses(index=index)) if index else frozenset()


def kernel_families() -> tuple[Family, ...]:
    """Return the address families that this network namespace has."""
    # The file does not exist if IPv6 is not built in, or disabled on the command line of the kernel (`ipv6.disable=1`).
    return tuple(family for family in Family if family is Family.IPV4 or _IPV6_INTERFACES.exists())


def device_index(name: str) -> int:
    """Return the index of a device; 0, which no device has, if it does not exist."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return 0


def device_addresses(family: Family | None = None, index: int = 0) -> list[tuple[int, bytes]]:
    """Return index of the device and packed address, for each address of one device or all (index 0).

    A device that does not exist has none.

    Raises:
        ApplyError: the addresses cannot be read; a later call may succeed.
    """
    body = IFADDRMSG.pack(family.socket_family if family else socket.AF_UNSPEC, 0, 0, 0, index)
    found: list[tuple[int, bytes]] = []
    try:
        with NetlinkSocket(NetlinkProtocol.ROUTE) as netlink, parsing():
            for data, start, end in netlink.dump_whole(Rtm.GETADDR, body, header=IFADDRMSG.size):
                address_family, _, _, _, device = IFADDRMSG.unpack_from(data, start - IFADDRMSG.size)
                # A kernel without strict checking (before 4.20) dumps all devices, and AF_UNSPEC has other protocols as well.
                if address_family in _SOCKET_FAMILIES and index in (0, device):
                    values = attribute_values(data, start, end)
                    found.append((device, bytes(values.get(Ifa.LOCAL) or values[Ifa.ADDRESS])))
    except OSError as error:
        if index and error.errno == errno.ENODEV:  # the device was deleted after the caller had looked up its index
            return []
        message = f"the addresses of this node cannot be read: {error.strerror}"
        raise ApplyError(message, retryable=True) from error
    return found


class AddressNotifications(Closeable):
    """Calls a function when an address of this network namespace is added or removed. Create it in the event loop."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        self._netlink = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
        try:
            self._netlink.bind((0, Rtmgrp.IPV4_IFADDR | Rtmgrp.IPV6_IFADDR))
            asyncio.get_running_loop().add_reader(self._netlink, self._read)
        except BaseException:
            self._netlink.close()
            raise

    def _read(self) -> None:
        # The messages are not parsed: they do not say what a lost one said, so the caller reads all addresses again anyway.
        try:
            self._netlink.recv(_NOTIFICATION_BYTES)
        except BlockingIOError:
            return
        except OSError:
            pass  # ENOBUFS: the kernel dropped notifications, which also means that addresses changed.
        self._on_change()

    def close(self) -> None:
        """Stop the notifications and close the socket."""
        asyncio.get_running_loop().remove_reader(self._netlink)
        self._netlink.close()
