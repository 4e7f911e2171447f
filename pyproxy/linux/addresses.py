"""The node's own addresses, and word of their changes. The one module that imports pyroute2."""

import asyncio
import socket
from collections.abc import Callable

from pyproxy.errors import ApplyError
from pyproxy.model.address import parse_ip

IPVS_DEVICE = "kube-ipvs0"
_RTMGRP_IPV4_IFADDR = 0x10
_RTMGRP_IPV6_IFADDR = 0x100


async def local_addresses() -> frozenset[bytes]:
    """Return every address of every interface of this network namespace, up or down, packed.

    The device that holds addresses of Services in IPVS mode is left out: those are not the node's.

    Raises:
        ApplyError: the kernel does not tell, for now.
    """
    others = _index(IPVS_DEVICE)
    return await _addresses(lambda index: index != others)


async def interface_addresses(name: str) -> frozenset[bytes]:
    """Return every address of one interface, packed; none where there is no such interface.

    Raises:
        ApplyError: see `local_addresses`.
    """
    wanted = _index(name)
    return await _addresses(lambda index: index == wanted) if wanted else frozenset()


def _index(interface: str) -> int:
    """Return the number of an interface, 0 if there is none of this name."""
    try:
        return socket.if_nametoindex(interface)
    except OSError:
        return 0


async def _addresses(is_wanted: Callable[[int], bool]) -> frozenset[bytes]:
    from pyroute2 import AsyncIPRoute, NetlinkError  # noqa: PLC0415  # 10 MB that only nodes with --nodeport-addresses need

    try:
        async with AsyncIPRoute() as route:
            messages = await route.addr("dump")
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
    """Calls back when an address of this network namespace comes or goes."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._netlink = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        self._netlink.bind((0, _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV6_IFADDR))
        asyncio.get_running_loop().add_reader(self._netlink, self._read)

    def _read(self) -> None:
        try:
            self._netlink.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            pass  # ENOBUFS: some were lost, which is word of a change too
        self._on_change()

    def close(self) -> None:
        """Stop listening."""
        asyncio.get_running_loop().remove_reader(self._netlink)
        self._netlink.close()
