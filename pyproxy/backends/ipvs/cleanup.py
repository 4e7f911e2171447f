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

from pyproxy.backends import kube_proxy
from pyproxy.backends.ipvs.entries import Member, RealServer, VirtualServer
from pyproxy.backends.ipvs.ipset import IpSets, IpsetType, ipvs_sets
from pyproxy.backends.ipvs.kernel import DRAIN_SECONDS
from pyproxy.backends.ipvs.static_rules import SERVED
from pyproxy.backends.ipvs.vips import Vips, node_addresses
from pyproxy.backends.ipvs.virtual_servers import IpvsConnection
from pyproxy.errors import ApplyError
from pyproxy.linux.netlink import Message
from pyproxy.model.address import Family

_LOOK_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class IpvsState:
    """What one of the two has in the kernel, in one family."""

    sets: IpSets
    names: Collection[str]
    """Of the sets, without their prefix."""
    virtuals: Collection[VirtualServer]
    ips: Collection[bytes]
    """Addresses on the device."""
    are_bound: bool
    """They are bound to it, and not routes."""

    def __bool__(self) -> bool:
        return bool(self.names or self.ips)


_Look = Callable[[Family], IpvsState]


def remove_ipvs(*, include_kube_proxy: bool) -> list[tuple[Family, str]]:
    """Remove what is ours at once; return what to say of each family. To be called when no rule uses a set any more.

    Args:
        include_kube_proxy: what kube-proxy left as well.

    Raises:
        ApplyError: something could not be removed.
    """
    looks: list[_Look] = [_own_state, _kube_proxy_state] if include_kube_proxy else [_own_state_not_taken_over]
    removed = [(family, _remove(look(family))) for look, family in product(looks, Family)]
    if any(what for _, what in removed) and not any(Vips(family).bound() for family in Family):
        Vips(Family.IPV4).remove_device()
    return removed


async def remove_stale_ipvs(*, include_kube_proxy: bool) -> None:
    """Remove what is ours, virtual servers with connections not before these have ended; may take long.

    Another mode takes new connections before IPVS sees them. To be called when no rule uses a set any more.

    Args:
        include_kube_proxy: what kube-proxy left as well.

    Raises:
        ApplyError: something could not be removed.
    """
    await _until_unused(_own_state)
    if include_kube_proxy:
        await _until_unused(_kube_proxy_state)
    remove_ipvs(include_kube_proxy=include_kube_proxy)


async def remove_kube_proxy_ipvs() -> None:
    """Remove what kube-proxy's IPVS mode left and ours did not take over, not before connections have ended; see above.

    Raises:
        ApplyError: something could not be removed.
    """
    await _until_unused(kube_proxy_state)
    for family in Family:
        _remove(kube_proxy_state(family))


async def _until_unused(look: _Look) -> None:
    while sum(_connections(look(family)) for family in Family):  # noqa: ASYNC110  # the kernel tells nobody when a connection ends
        await asyncio.sleep(_LOOK_SECONDS)


def _own_state(family: Family) -> IpvsState:
    sets, types = ipvs_sets(family)
    names, members = _read(sets, types)
    return IpvsState(sets, names, _virtuals(members), Vips(family).read() if names else (), are_bound=False)


def _own_state_not_taken_over(family: Family) -> IpvsState:
    """Return what is ours and was not taken over by kube-proxy, which makes its sets anew when it is back."""
    left = _own_state(family)
    return replace(left, virtuals=set(left.virtuals).difference(_kube_proxy_state(family).virtuals))


def kube_proxy_state(family: Family) -> IpvsState:
    """Return what kube-proxy left and ours did not take over."""
    left = _kube_proxy_state(family)
    return replace(left, virtuals=set(left.virtuals).difference(_own_state(family).virtuals))


def _kube_proxy_state(family: Family) -> IpvsState:
    sets = IpSets(family, kube_proxy.set_prefix(family))
    full_names = {kube_proxy.cut(family, name): name for name in kube_proxy.SETS}
    names, members = _read(sets, dict.fromkeys(full_names, IpsetType.IP))
    ips = Vips(family).bound()
    if not (names or ips):
        return IpvsState(sets, (), (), (), are_bound=True)
    at = {
        VirtualServer(member.ip, member.protocol, member.port)
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
    return IpvsState(sets, names, found, ips, are_bound=True)


def _remove(left: IpvsState) -> str:
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


def _connections(left: IpvsState) -> int:
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
                quiet.append(servers.change_real(RealServer(virtual, endpoint), 0, now))
    servers.perform_deletes(quiet)
    return found


def _read(sets: IpSets, types: Mapping[str, IpsetType]) -> tuple[set[str], dict[Member, str]]:
    try:
        return sets.read(types)
    except OSError:
        return set(), {}  # a kernel without ipset has none of ours


def _virtuals(members: Collection[Member]) -> list[VirtualServer]:
    return [VirtualServer(member.ip, member.protocol, member.port) for member in members if member.set in SERVED]


def _servers() -> IpvsConnection | None:
    """Return the door to IPVS; None where the kernel has none, and so nothing of ours in it."""
    try:
        return IpvsConnection()
    except OSError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
