"""Devices of this network namespace, by pyroute2: bridges and their ports, and the removal of a device.

The only module that uses pyroute2, for what a short-lived command does once. Loading the library costs 0.1 s and 9 MB, so it
is loaded by the call, and the agent's own messages are packed by hand (docs/decisions/008-netlink-by-hand.md).
"""

import errno
from dataclasses import dataclass

from pyproxy.errors import ApplyError

_PORT_MODE = ("IFLA_LINKINFO", "IFLA_INFO_SLAVE_DATA", "IFLA_BRPORT_MODE")


@dataclass(frozen=True, slots=True)
class BridgePort:
    """A device that is a port of a bridge."""

    name: str
    is_hairpin: bool
    """Whether the bridge may send a frame back through the port that it came from."""


async def bridges() -> dict[str, list[BridgePort]]:
    """Return the ports of each bridge. Needs no rights.

    Raises:
        OSError: the kernel refused.
    """
    from pyroute2 import AsyncIPRoute, NetlinkError  # noqa: PLC0415 - see above

    try:
        async with AsyncIPRoute() as route:
            links = [link async for link in await route.link("dump")]
    except NetlinkError as error:
        raise OSError(error.code, str(error)) from error
    names = {link["index"]: str(link.get("ifname")) for link in links}
    is_bridge = {link["index"]: link.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") == "bridge" for link in links}
    found: dict[str, list[BridgePort]] = {names[index]: [] for index in names if is_bridge[index]}
    for link in links:
        if link.get_nested("IFLA_LINKINFO", "IFLA_INFO_SLAVE_KIND") == "bridge":
            port = BridgePort(names[link["index"]], is_hairpin=link.get_nested(*_PORT_MODE) == 1)
            # A bridge in another network namespace has no name here.
            found.setdefault(names.get(link.get("master"), ""), []).append(port)
    return found


def delete_device(index: int) -> None:
    """Delete a device, with its addresses and the routes over it. Succeeds if it is gone already.

    Not for a thread with a running event loop: the blocking IPRoute of pyroute2 runs a loop of its own.

    Raises:
        ApplyError: the kernel refused.
    """
    from pyroute2 import IPRoute, NetlinkError  # noqa: PLC0415 - see above

    try:
        with IPRoute() as route:
            route.link("del", index=index)
    except NetlinkError as error:
        if error.code != errno.ENODEV:
            message = f"the device with the index {index} cannot be deleted: {error}"
            raise ApplyError(message, retryable=False) from error
