"""Takes the IPVS mode's virtual servers, addresses and sets out of the kernel; its rules go with those of other modes.

Told by the sets: what is in one of ours is ours. Without any set there is nothing of ours, and nothing is touched.
"""

import asyncio
import errno
from collections.abc import Collection
from time import time

from pyproxy.apply.ipset import IpSets, SetType
from pyproxy.apply.iptables import Variant, is_available
from pyproxy.apply.ipvs import DRAIN_SECONDS
from pyproxy.apply.netlink import Message
from pyproxy.apply.vips import Vips
from pyproxy.apply.virtual_servers import VirtualServers
from pyproxy.compile.ipvs_static import SERVED, is_ours_alone
from pyproxy.errors import ApplyError
from pyproxy.loop.cleanup import remove_chains
from pyproxy.loop.ipvs_sets import ipvs_sets
from pyproxy.model.address import Family
from pyproxy.model.ipvs import Member, Real, Virtual
from pyproxy.model.ruleset import IPVS_TABLES

_LOOK_SECONDS = 5.0


async def remove_ipvs() -> dict[Family, str]:
    """Remove what is ours at once; return what to say of each family. To be called when no rule uses a set any more.

    Raises:
        ApplyError: something could not be removed.
    """
    removed = {family: _remove(family) for family in Family}
    if any(removed.values()):
        Vips(Family.IPV4).remove_device()
    return removed


async def retire_ipvs(variant: Variant | None) -> None:
    """Remove what is ours, virtual servers with connections not before these have ended; may take long.

    Another mode takes new connections before IPVS sees them.

    Args:
        variant: where the iptables mode that took over has its rules, beside which those of IPVS are; None: other modes.

    Raises:
        ApplyError: something could not be removed.
    """
    if variant is not None:
        for family in Family:
            if is_available(family, variant):
                await remove_chains(family, variant, IPVS_TABLES, is_ours_alone)
    while sum(map(_connections, Family)):  # noqa: ASYNC110  # the kernel tells nobody when a connection ends
        await asyncio.sleep(_LOOK_SECONDS)
    await remove_ipvs()


def _remove(family: Family) -> str:
    sets, types = ipvs_sets(family)
    names, members = _read(sets, types)
    if not names:
        return ""
    virtuals = _virtuals(members)
    servers = _servers()
    if servers is not None:
        servers.perform_deletes([servers.delete(virtual) for virtual in virtuals])
    vips = Vips(family)
    ips = vips.read()
    vips.delete(ips)
    _destroy(sets, names)
    return f"removed {len(virtuals)} virtual servers, {len(ips)} addresses and {len(names)} sets"


def _destroy(sets: IpSets, names: Collection[str]) -> None:
    try:
        sets.destroy(names)
    except ApplyError as error:
        message = f"{error}: iptables rules of others, or of another variant, still name them"
        raise ApplyError(message, retryable=True) from error


def _connections(family: Family) -> int:
    """Return how many connections our virtual servers still have, and see that they get no new ones."""
    sets, types = ipvs_sets(family)
    _, members = _read(sets, types)
    servers = _servers()
    if not members or servers is None:
        return 0
    now = int(time())
    found = 0
    quiet: list[Message] = []
    for virtual in _virtuals(members):
        for endpoint, state in servers.reals(virtual):
            found += state.active if now - (state.since or now) < DRAIN_SECONDS else 0
            if state.weight:
                quiet.append(servers.change_real(Real(virtual, endpoint), 0, now))
    servers.perform_deletes(quiet)
    return found


def _read(sets: IpSets, types: dict[str, SetType]) -> tuple[set[str], dict[Member, str]]:
    try:
        return sets.read(types)
    except OSError:
        return set(), {}  # a kernel without ipset has none of ours


def _virtuals(members: Collection[Member]) -> list[Virtual]:
    return [Virtual(member.ip, member.protocol, member.port) for member in members if member.set in SERVED]


def _servers() -> VirtualServers | None:
    """Return the door to IPVS; None where the kernel has none, and so nothing of ours in it."""
    try:
        return VirtualServers()
    except OSError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
