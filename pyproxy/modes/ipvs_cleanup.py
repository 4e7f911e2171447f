"""Takes virtual servers, addresses and sets out of the kernel; the rules around them go with those of other modes.

Told by the sets: what is in one of ours is ours. Without any set there is nothing of ours, and nothing is touched. So it is
with kube-proxy's IPVS mode: what is in its sets, or on an address that it bound, is its own.
"""

import asyncio
import errno
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from itertools import product
from time import time

from pyproxy.apply.ipset import IpSets, SetType
from pyproxy.apply.ipvs import DRAIN_SECONDS
from pyproxy.apply.netlink import Message
from pyproxy.apply.vips import Vips, node_addresses
from pyproxy.apply.virtual_servers import VirtualServers
from pyproxy.compile import kube_proxy
from pyproxy.compile.ipvs_static import SERVED
from pyproxy.errors import ApplyError
from pyproxy.model.address import Family
from pyproxy.model.ipvs import Member, Real, Virtual
from pyproxy.modes.ipvs_sets import ipvs_sets

_LOOK_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Left:
    """What one of the two has in the kernel, in one family."""

    sets: IpSets
    names: Collection[str]
    """Of the sets, without their prefix."""
    virtuals: Collection[Virtual]
    ips: Collection[bytes]
    """Addresses on the device."""
    are_bound: bool
    """They are bound to it, and not routes."""

    def __bool__(self) -> bool:
        return bool(self.names or self.ips)


_Look = Callable[[Family], Left]


def remove_ipvs(*, its_too: bool) -> list[tuple[Family, str]]:
    """Remove what is ours at once; return what to say of each family. To be called when no rule uses a set any more.

    Args:
        its_too: what kube-proxy left as well.

    Raises:
        ApplyError: something could not be removed.
    """
    looks: list[_Look] = [_ours, _its] if its_too else [_ours_now]
    removed = [(family, _remove(look(family))) for look, family in product(looks, Family)]
    if any(what for _, what in removed) and not any(Vips(family).bound() for family in Family):
        Vips(Family.IPV4).remove_device()
    return removed


async def retire_ipvs(*, its_too: bool) -> None:
    """Remove what is ours, virtual servers with connections not before these have ended; may take long.

    Another mode takes new connections before IPVS sees them. To be called when no rule uses a set any more.

    Args:
        its_too: what kube-proxy left as well.

    Raises:
        ApplyError: something could not be removed.
    """
    await _until_unused(_ours)
    if its_too:
        await _until_unused(_its)
    remove_ipvs(its_too=its_too)


async def retire_kube_proxys_ipvs() -> None:
    """Remove what kube-proxy's IPVS mode left and ours did not take over, not before connections have ended; see above.

    Raises:
        ApplyError: something could not be removed.
    """
    await _until_unused(kube_proxys)
    for family in Family:
        _remove(kube_proxys(family))


async def _until_unused(look: _Look) -> None:
    while sum(_connections(look(family)) for family in Family):  # noqa: ASYNC110  # the kernel tells nobody when a connection ends
        await asyncio.sleep(_LOOK_SECONDS)


def _ours(family: Family) -> Left:
    sets, types = ipvs_sets(family)
    names, members = _read(sets, types)
    return Left(sets, names, _virtuals(members), Vips(family).read() if names else (), are_bound=False)


def _ours_now(family: Family) -> Left:
    """Return what is ours and was not taken over by kube-proxy, which makes its sets anew when it is back."""
    left = _ours(family)
    return replace(left, virtuals=set(left.virtuals).difference(_its(family).virtuals))


def kube_proxys(family: Family) -> Left:
    """Return what kube-proxy left and ours did not take over."""
    left = _its(family)
    return replace(left, virtuals=set(left.virtuals).difference(_ours(family).virtuals))


def _its(family: Family) -> Left:
    sets = IpSets(family, kube_proxy.set_prefix(family))
    full_names = {kube_proxy.cut(family, name): name for name in kube_proxy.SETS}
    names, members = _read(sets, dict.fromkeys(full_names, SetType.IP))
    ips = Vips(family).bound()
    if not (names or ips):
        return Left(sets, (), (), (), are_bound=True)
    at = {
        Virtual(member.ip, member.protocol, member.port)
        for member in members
        if full_names[member.set] in kube_proxy.BY_ADDRESS
    }
    ports = {
        (kube_proxy.BY_PORT[name], member.port)
        for member in members
        if (name := full_names[member.set]) in kube_proxy.BY_PORT
    }
    own = node_addresses(family) if ports else ()
    servers = _servers()
    found = [
        virtual
        for virtual, _ in (servers.services(family) if servers else ())
        if virtual in at or virtual.ip in ips or (virtual.ip in own and (virtual.protocol, virtual.port) in ports)
    ]
    return Left(sets, names, found, ips, are_bound=True)


def _remove(left: Left) -> str:
    if not left:
        return ""
    servers = _servers()
    if servers is not None:
        servers.perform_deletes([servers.delete(virtual) for virtual in left.virtuals])
    vips = Vips(left.sets.family)
    (vips.unbind if left.are_bound else vips.delete)(left.ips)
    _destroy(left.sets, left.names)
    return f"removed {len(left.virtuals)} virtual servers, {len(left.ips)} addresses and {len(left.names)} sets"


def _destroy(sets: IpSets, names: Collection[str]) -> None:
    try:
        sets.destroy(names)
    except ApplyError as error:
        message = f"{error}: iptables rules of others, or of another variant, still name them"
        raise ApplyError(message, retryable=True) from error


def _connections(left: Left) -> int:
    """Return how many connections virtual servers still have, and see that they get no new ones."""
    servers = _servers()
    if not left.virtuals or servers is None:
        return 0
    now = int(time())
    found = 0
    quiet: list[Message] = []
    for virtual in left.virtuals:
        for endpoint, state in servers.reals(virtual):
            found += state.active if now - (state.since or now) < DRAIN_SECONDS else 0
            if state.weight:
                quiet.append(servers.change_real(Real(virtual, endpoint), 0, now))
    servers.perform_deletes(quiet)
    return found


def _read(sets: IpSets, types: Mapping[str, SetType]) -> tuple[set[str], dict[Member, str]]:
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
