"""Reads one family's entries of the IPVS mode except for rules, with sockets of its own. Writes nothing."""

from collections.abc import Collection, Mapping

from pyproxy.backends.ipvs.entries import (
    IpvsKey,
    IpvsValue,
    Member,
    RealServer,
    RealServerState,
    Set,
    Vip,
    VirtualServer,
)
from pyproxy.backends.ipvs.ipset import ipvs_sets
from pyproxy.backends.ipvs.static_rules import SERVED
from pyproxy.backends.ipvs.vips import Vips
from pyproxy.backends.ipvs.virtual_servers import IpvsConnection
from pyproxy.model.address import Family, Network


def read_entries(family: Family) -> tuple[dict[IpvsKey, IpvsValue], dict[RealServer, RealServerState]]:
    """Return the entries in the kernel except for rules, and the states of real servers.

    Foreign virtual servers are among the entries, unless nothing is pyproxy's.

    Raises:
        OSError: the kernel cannot be read.
    """
    sets, types = ipvs_sets(family)
    with sets:
        names, members = sets.read(types)
    entries: dict[IpvsKey, IpvsValue] = {}
    entries.update((Set(name), types[name].value[0]) for name in names)
    entries.update(members.items())
    # Without a set nothing is ours, and a virtual server that exists is foreign.
    if not entries:
        return {}, {}
    with Vips(family) as vips, IpvsConnection() as servers:
        entries.update((Vip(ip), source) for ip, source in vips.read().items())
        virtuals = dict(servers.services(family))
        states = dict(servers.all_reals(virtuals, family))
    entries.update(virtuals.items())
    entries.update((real, state.weight) for real, state in states.items())
    return entries, states


def foreign_servers(entries: Mapping[IpvsKey, IpvsValue], excluded: Collection[Network]) -> set[VirtualServer]:
    """Return the virtual servers that are in none of our sets, or on excluded addresses."""
    return {
        key
        for key in entries
        if isinstance(key, VirtualServer)
        and (any(key.ip in block for block in excluded) or not any(Member(name, *key) in entries for name in SERVED))
    }


def left_in_place(entries: Mapping[IpvsKey, IpvsValue], excluded: Collection[Network]) -> set[IpvsKey]:
    """Return foreign servers, and real servers with weight 0: if they are not wanted, a sync leaves them in place."""
    foreign = foreign_servers(entries, excluded)
    reals = {key for key in entries if isinstance(key, RealServer) and (key.virtual in foreign or entries[key] == 0)}
    return {*foreign, *reals}
