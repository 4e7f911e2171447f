"""Removal of virtual servers, addresses and ipsets. The rules beside them are removed with those of the other modes.

IPVS keeps no owner with a virtual server, so the ipsets say which ones are ours: a virtual server is ours if one of our
sets has its address, protocol and port as a member. Without any of our sets nothing is ours, and nothing is touched. The
same holds for kube-proxy's IPVS mode: a virtual server belongs to kube-proxy if its sets have it, or if it is on an
address that is bound to kube-ipvs0.
"""

import asyncio
import errno
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import product
from time import time
from typing import NamedTuple

from pyproxy.backends import kube_proxy
from pyproxy.backends.ipvs.entries import Member, RealServer, VirtualServer
from pyproxy.backends.ipvs.ipset import IpSets, IpsetType, ipvs_sets
from pyproxy.backends.ipvs.kernel import DRAIN_SECONDS
from pyproxy.backends.ipvs.static_rules import SERVED
from pyproxy.backends.ipvs.vips import Vips, bound_ips
from pyproxy.backends.ipvs.virtual_servers import IpvsConnection
from pyproxy.errors import ApplyError
from pyproxy.linux.addresses import IPVS_DEVICE, device_index, local_addresses
from pyproxy.linux.devices import delete_device
from pyproxy.linux.netlink import Message
from pyproxy.model.address import Family

_POLL_SECONDS = 5.0


class RemovedIpvs(NamedTuple):
    """What was removed in one family."""

    virtual_servers: int
    addresses: int
    sets: int


@dataclass(frozen=True, slots=True)
class IpvsState:
    """What pyproxy, or kube-proxy, has in the kernel in one family."""

    family: Family
    prefix: str
    """Of the names of the sets."""
    names: Collection[str]
    """Names of the sets, without their prefix."""
    virtuals: Collection[VirtualServer]
    ips: Collection[bytes]
    """Service addresses that kube-ipvs0 serves."""
    are_bound: bool
    """The addresses are bound to the device, as kube-proxy does; ours are local routes."""

    def __bool__(self) -> bool:
        return bool(self.names or self.ips)


_StateReader = Callable[[Family], IpvsState]


def remove_ipvs(*, include_kube_proxy: bool) -> list[tuple[Family, RemovedIpvs]]:
    """Remove everything of ours at once, and return what was removed. No rule may use a set any more.

    Args:
        include_kube_proxy: also remove what kube-proxy's IPVS mode left.

    Raises:
        ApplyError: something could not be removed.
    """
    removed = [(family, _remove(state)) for family, state in _removable_states(include_kube_proxy=include_kube_proxy)]
    # Addresses that are still bound belong to a kube-proxy, which needs the device. Deleting it removes the routes as well.
    if removed and not any(bound_ips(family) for family in Family) and (index := device_index(IPVS_DEVICE)):
        delete_device(index)
    return removed


def removable_ipvs(*, include_kube_proxy: bool) -> list[tuple[Family, RemovedIpvs]]:
    """Return what `remove_ipvs` would remove. Changes nothing."""
    return [(family, _counts(state)) for family, state in _removable_states(include_kube_proxy=include_kube_proxy)]


def _removable_states(*, include_kube_proxy: bool) -> Iterator[tuple[Family, IpvsState]]:
    # Lazily: what is removed first, ours, is not counted again as kube-proxy's, whose virtual servers are found by address.
    readers: list[_StateReader] = [_own_state, _kube_proxy_state] if include_kube_proxy else [_own_state_not_taken_over]
    for read, family in product(readers, Family):
        if state := read(family):
            yield family, state


def _counts(state: IpvsState) -> RemovedIpvs:
    return RemovedIpvs(len(state.virtuals), len(state.ips), len(state.names))


async def remove_stale_ipvs(*, include_kube_proxy: bool) -> None:
    """Remove everything of ours once its connections have ended, which may take long. No rule may use a set any more.

    The mode that is in use now translates new connections before IPVS sees them, so the virtual servers only serve
    connections that are open already.

    Args:
        include_kube_proxy: also remove what kube-proxy's IPVS mode left.

    Raises:
        ApplyError: something could not be removed.
    """
    await _wait_for_connections(_own_state)
    if include_kube_proxy:
        await _wait_for_connections(_kube_proxy_state)
    await asyncio.to_thread(remove_ipvs, include_kube_proxy=include_kube_proxy)


async def remove_kube_proxy_ipvs() -> None:
    """Remove what kube-proxy's IPVS mode left and ours did not take over, once its connections have ended.

    Raises:
        ApplyError: something could not be removed.
    """
    await _wait_for_connections(kube_proxy_state)
    for family in Family:
        if state := kube_proxy_state(family):
            _remove(state)


async def _wait_for_connections(read: _StateReader) -> None:
    while True:
        count = 0
        for family in Family:
            state = read(family)
            with _open_ipvs() as servers:
                if servers is None:
                    return
                now = int(time())
                quiesced: list[Message] = []
                for virtual in state.virtuals:
                    for endpoint, real_state in servers.reals(virtual):
                        count += real_state.active if now - (real_state.since or now) < DRAIN_SECONDS else 0
                        # With weight 0 it gets no new connections. The time stamp starts the hour that its old ones have.
                        if real_state.weight:
                            quiesced.append(servers.change_real(RealServer(virtual, endpoint), 0, now))
                servers.perform_deletes(quiesced)
        if not count:
            return
        # The kernel has no notification for the end of an IPVS connection, so this polls.
        await asyncio.sleep(_POLL_SECONDS)


def _own_state(family: Family) -> IpvsState:
    sets, types = ipvs_sets(family)
    names, members = _read_sets(sets, types)
    virtuals = [VirtualServer(member.ip, member.protocol, member.port) for member in members if member.set in SERVED]
    with Vips(family) as vips:
        ips = vips.read() if names else ()
    return IpvsState(family, sets.prefix, names, virtuals, ips, are_bound=False)


def _own_state_not_taken_over(family: Family) -> IpvsState:
    # A kube-proxy that returned recreated its own sets, and took these virtual servers over.
    state = _own_state(family)
    return replace(state, virtuals=set(state.virtuals).difference(_kube_proxy_state(family).virtuals))


def kube_proxy_state(family: Family) -> IpvsState:
    """Return kube-proxy's state without the virtual servers that our IPVS mode took over."""
    state = _kube_proxy_state(family)
    return replace(state, virtuals=set(state.virtuals).difference(_own_state(family).virtuals))


def _kube_proxy_state(family: Family) -> IpvsState:
    sets = IpSets(family, kube_proxy.set_prefix(family))
    full_names = {kube_proxy.cut(family, name): name for name in kube_proxy.SETS}
    names, members = _read_sets(sets, dict.fromkeys(full_names, IpsetType.IP))
    ips = bound_ips(family)
    if not (names or ips):
        return IpvsState(family, sets.prefix, (), (), (), are_bound=True)
    # Most sets have the whole frontend. Those of TCP and UDP node ports have the port only: kube-proxy creates one virtual
    # server for it on each address of the node.
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
    own = local_addresses() if ports else ()
    with _open_ipvs() as servers:
        found = [
            virtual
            for virtual, _ in (servers.services(family) if servers else ())
            if virtual in at or virtual.ip in ips or (virtual.ip in own and (virtual.protocol, virtual.port) in ports)
        ]
    return IpvsState(family, sets.prefix, names, found, ips, are_bound=True)


def _remove(state: IpvsState) -> RemovedIpvs:
    with _open_ipvs() as servers:
        if servers is not None:
            servers.perform_deletes([servers.delete(virtual) for virtual in state.virtuals])
    # kube-proxy's addresses are bound to the device, ours are routes.
    with Vips(state.family) as vips:
        (vips.unbind if state.are_bound else vips.delete)(state.ips)
    # Last: until they are gone, the sets say what else is ours, so that a clean-up that failed can be repeated.
    try:
        with IpSets(state.family, state.prefix) as sets:
            sets.destroy(state.names)
    except ApplyError as error:
        message = f"{error}: iptables rules of another program, or of another variant, still refer to it"
        raise ApplyError(message, retryable=True) from error
    return _counts(state)


def _read_sets(sets: IpSets, types: Mapping[str, IpsetType]) -> tuple[set[str], dict[Member, str]]:
    with sets:
        try:
            return sets.read(types)
        except OSError:
            return set(), {}  # a kernel without ipset has none of our sets


def _open_ipvs() -> AbstractContextManager[IpvsConnection | None]:
    # None: the kernel has no IPVS, and so no virtual server of ours.
    try:
        return IpvsConnection()
    except OSError as error:
        if error.errno == errno.ENOENT:
            return nullcontext()
        raise
