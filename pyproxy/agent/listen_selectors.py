"""Follows the addresses on which a server listens if the user gave a CIDR block or an interface."""

import asyncio
import logging
from collections.abc import Callable, Collection

from pyproxy.config.grammar import ListenSelector
from pyproxy.errors import ApplyError
from pyproxy.linux.addresses import AddressNotifications, interface_addresses, local_addresses
from pyproxy.model.address import ListenAddress, parse_network

logger = logging.getLogger(__name__)

_RETRY_SECONDS = 5.0
# They are valid only together with an interface, which URLs of scrapers do not contain.
_LINK_LOCAL = parse_network("fe80::/10")


async def follow_selector(place: ListenSelector, listen: Callable[[Collection[ListenAddress]], None]) -> None:
    """Call `listen` with the addresses that a selector matches, at first and after each change, until cancelled."""
    changed = asyncio.Event()
    changed.set()
    notifications = AddressNotifications(changed.set)
    try:
        while True:
            await changed.wait()
            changed.clear()
            try:
                if isinstance(place.where, str):
                    ips = interface_addresses(place.where)
                else:
                    network = place.where
                    ips = frozenset(ip for ip in local_addresses() if ip in network)
            except ApplyError as error:
                logger.warning("%s: %s", place, error)
                asyncio.get_running_loop().call_later(_RETRY_SECONDS, changed.set)
                continue
            addresses = [ListenAddress(ip, place.port) for ip in sorted(ips) if ip not in _LINK_LOCAL]
            if not addresses:
                logger.warning("%s has no address: not listening until it has one", place)
            listen(addresses)
    finally:
        notifications.close()
