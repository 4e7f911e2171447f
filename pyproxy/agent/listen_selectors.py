"""Addresses that a server is to listen on where the user named a CIDR block or an interface; they come and go."""

import asyncio
import logging
from collections.abc import Callable, Collection

from pyproxy.config.grammar import ListenSelector
from pyproxy.errors import ApplyError
from pyproxy.linux.addresses import AddressNotifications, interface_addresses, local_addresses
from pyproxy.model.address import ListenAddress, parse_network

logger = logging.getLogger(__name__)

_RETRY_SECONDS = 5.0
_LINK_LOCAL = parse_network("fe80::/10")
"""They are addresses only together with an interface, and no client of ours has one."""


async def follow_selector(place: ListenSelector, listen: Callable[[Collection[ListenAddress]], None]) -> None:
    """Have a server listen on the addresses of a place, and on others when these change, until cancelled."""
    changed = asyncio.Event()
    changed.set()
    notifications = AddressNotifications(changed.set)
    try:
        while True:
            await changed.wait()
            changed.clear()
            try:
                addresses = await _addresses(place)
            except ApplyError as error:
                logger.warning("%s: %s", place, error)
                asyncio.get_running_loop().call_later(_RETRY_SECONDS, changed.set)
                continue
            if not addresses:
                logger.warning("nothing is served on %s for now: it has no address", place)
            listen(addresses)
    finally:
        notifications.close()


async def _addresses(place: ListenSelector) -> list[ListenAddress]:
    if isinstance(place.where, str):
        ips = await interface_addresses(place.where)
    else:
        network = place.where
        ips = frozenset(ip for ip in await local_addresses() if ip in network)
    return [ListenAddress(ip, place.port) for ip in sorted(ips) if ip not in _LINK_LOCAL]
