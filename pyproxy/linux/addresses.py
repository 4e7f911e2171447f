"""The node's own addresses, and notifications of their changes. The only module that imports pyroute2."""

import asyncio
import socket
from collections.abc import Callable
from typing import Self

from pyproxy.errors import ApplyError
from pyproxy.linux.uapi.rtnetlink import Rtmgrp
from pyproxy.model.address import parse_ip

IPVS_DEVICE = "kube-ipvs0"
"""The dummy device that holds the addresses of Services in IPVS mode; kube-proxy uses the same name."""
_NOTIFICATION_BYTES = 1 << 16


async def local_addresses() -> frozenset[bytes]:
    """Return every address of every interface of this network namespace, up or down, packed.

    The addresses of kube-ipvs0 are left out: they belong to Services, not to the node.

    Raises:
        ApplyError: the addresses cannot be read; a later call may succeed.
    """
    ipvs_device = _index(IPVS_DEVICE)
    return await _addresses(lambda index: index != ipvs_device)


async def interface_addresses(name: str) -> frozenset[bytes]:
    """Return every address of one interface, packed; an empty set if the interface does not exist.

    Raises:
        ApplyError: the addresses cannot be read; a later call may succeed.
    """
    wanted = _index(name)
    return await _addresses(lambda index: index == wanted) if wanted else frozenset()


def _index(interface: str) -> int:
    """Return the index of an interface, or 0 if no interface has this name."""
    try:
        return socket.if_nametoindex(interface)
    except OSError:
        return 0


async def _addresses(is_wanted: Callable[[int], bool]) -> frozenset[bytes]:
    from pyroute2 import AsyncIPRoute, NetlinkError  # noqa: PLC0415  # 10 MB that only nodes with --nodeport-addresses need

    try:
        async with AsyncIPRoute() as route:
            messages = await route.addr("dump")
            # IFA_LOCAL is the interface's own address, IFA_ADDRESS that of the peer on a point-to-point link. IPv6 has only
            # the second one.
            found = [
                message.get("local") or message.get("address")
                async for message in messages
                if is_wanted(message.get("index"))
            ]
    except (OSError, NetlinkError) as error:
        message = f"the addresses of this node cannot be read: {error}"
        raise ApplyError(message, retryable=True) from error
    return frozenset(parse_ip(text) for text in found if text)


class AddressNotifications:
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

    def __enter__(self) -> Self:
        """Return the object; the end of the block stops the notifications."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the notifications and close the socket."""
        self.close()

    def _read(self) -> None:
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
