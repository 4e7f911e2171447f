"""Reads and writes one family's entries of the IPVS mode: virtual and real servers, VIPs, ipsets and helper rules.

Additions come before removals, and both in an order in which no packet sees half of a Service. To add: sets, virtual servers,
real servers, members of sets, VIPs, rules. So a packet is only delivered to this node when there is a virtual server with
real servers for it. Removals go the other way. They run in a thread, because a large change takes longer than the event loop
may be blocked.

Draining: a real server that has to go keeps its open connections. It gets weight 0 and a time stamp, both in the kernel,
where a restarted agent finds them. A timer of the event loop removes it when its connections have ended, or after
`DRAIN_SECONDS`. UDP has no connections that end, so its real servers are removed at once (`docs/decisions/022-ipvs-draining.md`).

IPVS has one table per network namespace, which other programs may use as well. A virtual server is ours if it was in one of our
sets when it was read; foreign ones are never changed.
"""

import asyncio
import errno
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from threading import Lock
from time import time
from typing import TypeVar

from pyproxy.backends.interface import KernelCounts
from pyproxy.backends.iptables.kernel import IptablesKernel
from pyproxy.backends.iptables.ruleset import ChainKey, HookKey, RulesetKey
from pyproxy.backends.ipvs.entries import IpvsKey, IpvsValue, Member, RealServer, Scheduling, Set, Vip, VirtualServer
from pyproxy.backends.ipvs.ipset import IpSets, IpsetType
from pyproxy.backends.ipvs.reader import foreign_servers, left_in_place, read_entries
from pyproxy.backends.ipvs.static_rules import SERVED
from pyproxy.backends.ipvs.vips import Vips, bound_ips, is_up
from pyproxy.backends.ipvs.virtual_servers import IpvsConnection, IpvsRefusedError
from pyproxy.errors import ApplyError
from pyproxy.linux.netlink import Message
from pyproxy.model.address import Family, Network
from pyproxy.model.names import Protocol

logger = logging.getLogger(__name__)

DRAIN_SECONDS = 3600
"""The longest time for which a real server without an endpoint keeps its connections."""
_POLL_SECONDS = 2.0
_POLLED_AT_ONCE = 100  # Virtual servers whose connections are checked at one time, which takes about 5 ms
_UDP = Protocol.UDP.number

IpvsChange = Mapping[IpvsKey, tuple[IpvsValue | None, IpvsValue | None]]
K = TypeVar("K")
V = TypeVar("V")


@dataclass(slots=True)
class _Parts:
    new_virtuals: dict[VirtualServer, Scheduling] = field(default_factory=dict)
    virtuals: dict[VirtualServer, Scheduling] = field(default_factory=dict)
    gone_virtuals: list[VirtualServer] = field(default_factory=list)
    new_reals: dict[RealServer, int] = field(default_factory=dict)
    reals: dict[RealServer, int] = field(default_factory=dict)
    gone_reals: list[RealServer] = field(default_factory=list)
    vips: dict[bytes, bytes] = field(default_factory=dict)
    gone_vips: list[bytes] = field(default_factory=list)
    sets: list[str] = field(default_factory=list)
    gone_sets: list[str] = field(default_factory=list)
    members: dict[Member, str] = field(default_factory=dict)
    gone_members: list[Member] = field(default_factory=list)
    rules: dict[RulesetKey, tuple[str | None, str | None]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class IpvsHandles:
    """The parts of the kernel that hold one family's entries."""

    servers: IpvsConnection
    sets: IpSets
    set_types: Mapping[str, IpsetType]
    vips: Vips
    rules: IptablesKernel


class IpvsKernel:
    """Our entries of one family."""

    # IPVS, ipset and routes have no counter of changes.
    detects_all_changes = False
    change_descriptor: int | None = None
    plans_per_portion: int | None = None

    def __init__(self, family: Family, handles: IpvsHandles, excluded: Collection[Network]) -> None:
        """Remember the handles.

        Args:
            family: the family.
            handles: its parts of the kernel.
            excluded: addresses whose virtual servers are never deleted (`--ipvs-exclude-cidrs`).
        """
        self.family = family
        self._handles = handles
        self._excluded = tuple(block for block in excluded if block.family is family)
        # Held by the thread that uses the sockets: a request and its answers must not mix with those of another.
        self._lock = Lock()
        self._foreign: set[VirtualServer] = set()
        # The foreign servers and draining real servers that were found last, by `read` and by `peek`, which may run at once.
        self._left: set[IpvsKey] = set()
        self._left_by_peek: set[IpvsKey] = set()
        self._vips: set[bytes] = set()  # those that should exist
        # Addresses that kube-proxy bound to the device. They are unbound once our routes are in place.
        self._bound: set[bytes] = set()
        # Real servers that drain: only a list of what to poll, which is read from the kernel at the start.
        self._draining: dict[VirtualServer, set[RealServer]] = {}
        # Virtual servers that have to go and still have connections, with the members of sets that go with them.
        self._deferred_deletes: dict[VirtualServer, list[Member]] = {}
        # The same for VIPs of such virtual servers, which their ports may share.
        self._deferred_ips: dict[bytes, Member] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"IpvsKernel({self.family})"

    async def peek(self) -> dict[IpvsKey, IpvsValue]:
        """Return what `read` returns, without effects except on `leftovers`; see `backends.interface.Kernel`."""
        with _as_apply_error("IPVS, ipset or routes"):
            found, _ = await asyncio.to_thread(read_entries, self.family)
        self._left_by_peek = left_in_place(found, self._excluded)
        found.update((await self._handles.rules.peek()).items())
        return found

    def leftovers(self) -> Collection[IpvsKey]:
        """Return foreign servers, draining real servers, and what is deleted once they are gone."""
        # Without the lock, for which the loop must not wait. `tuple` copies while no other thread runs.
        deferred = tuple(self._deferred_deletes.items())
        members = chain.from_iterable(tuple(group) for _, group in deferred)
        vips = ((Vip(ip), member) for ip, member in tuple(self._deferred_ips.items()))
        return self._left.union(self._left_by_peek, members, (virtual for virtual, _ in deferred), *vips)

    async def read(self) -> dict[IpvsKey, IpvsValue]:
        """Return our entries, and foreign virtual servers, because one may have the address and port of one of ours.

        Raises:
            ApplyError: something cannot be read.
        """
        found = await asyncio.to_thread(self._read)
        found.update((await self._handles.rules.read()).items())
        return found

    def _read(self) -> dict[IpvsKey, IpvsValue]:
        handles = self._handles
        found: dict[IpvsKey, IpvsValue] = {}
        with self._lock:
            # The caller compares all entries after a read. Entries that drain and are not wanted come back as a change; those
            # that are wanted again must not be removed.
            self._draining.clear()
            self._deferred_deletes.clear()
            self._deferred_ips.clear()
            handles.vips.ensure_device()
            with _as_apply_error("ipset"):
                names, members = handles.sets.read(handles.set_types)
            found |= {Set(name): handles.set_types[name].value[0] for name in names}
            found.update(members.items())
            with _as_apply_error("local routes"):
                found |= {Vip(ip): source for ip, source in handles.vips.read().items()}
                self._vips = {key.ip for key in found if isinstance(key, Vip)}
                self._bound = bound_ips(self.family)
            with _as_apply_error("IPVS"):
                virtuals = dict(handles.servers.services(self.family))
                reals = dict(handles.servers.all_reals(virtuals, self.family))
            found.update(virtuals.items())
            found |= {real: state.weight for real, state in reals.items()}
            self._foreign = foreign_servers(found, self._excluded)
            self._left = left_in_place(found, self._excluded)
        return found

    async def apply(self, change: IpvsChange) -> None:
        """Perform a change.

        Raises:
            ApplyError: it was refused, or a part of it.
        """
        parts = _parts(change)
        # The first change after a read removes everything that was read and is not wanted. Foreign virtual servers are left
        # out of it. A foreign one that is wanted has the address and port of one of ours, and becomes ours.
        foreign = self._foreign.intersection(parts.gone_virtuals)
        self._foreign = foreign
        parts.gone_virtuals = [virtual for virtual in parts.gone_virtuals if virtual not in foreign]
        parts.gone_reals = [real for real in parts.gone_reals if real.virtual not in foreign]
        self._vips = self._vips.difference(parts.gone_vips).union(parts.vips)
        await asyncio.to_thread(self._add, parts)
        if parts.rules:
            await self._handles.rules.apply(parts.rules)
        await asyncio.to_thread(self._remove, parts)
        self._schedule_poll()

    def _add(self, parts: _Parts) -> None:
        handles = self._handles
        servers = handles.servers
        with self._lock, _as_apply_error("IPVS"):
            handles.sets.create(parts.sets, handles.set_types)
            # A virtual or real server that should be new may exist: foreign, or draining. Then it is changed instead. One
            # that should exist may have been deleted by another program. Then it is created.
            _perform(servers, parts.new_virtuals, servers.add, servers.change)
            _perform(servers, parts.virtuals, servers.change, servers.add)
            _perform(servers, parts.new_reals, servers.add_real, servers.change_real)
            _perform(servers, parts.reals, servers.change_real, servers.add_real)
            for virtual in (*parts.new_virtuals, *parts.virtuals):
                self._deferred_deletes.pop(virtual, None)
            for real in (*parts.new_reals, *parts.reals):
                self._stop_draining(real)
            handles.sets.add(parts.members)
            if parts.vips:
                handles.vips.add(parts.vips)

    def _remove(self, parts: _Parts) -> None:
        handles = self._handles
        servers = handles.servers
        with self._lock, _as_apply_error("IPVS"):
            self._defer(parts)
            handles.vips.delete(parts.gone_vips)
            handles.vips.unbind(self._bound)
            self._bound = set()
            handles.sets.delete(parts.gone_members)
            handles.sets.destroy(parts.gone_sets)
            servers.perform_deletes([servers.delete(virtual) for virtual in parts.gone_virtuals])
            for virtual in parts.gone_virtuals:
                self._draining.pop(virtual, None)
            # The kernel deletes real servers with their virtual server.
            gone = set(parts.gone_virtuals)
            reals = [real for real in parts.gone_reals if real.virtual not in gone]
            servers.perform_deletes([servers.delete_real(real) for real in reals if real.virtual.protocol == _UDP])
            draining = [real for real in reals if real.virtual.protocol != _UDP]
            for real in draining:
                self._draining.setdefault(real.virtual, set()).add(real)
            self._poll(dict.fromkeys(real.virtual for real in draining))

    def _defer(self, parts: _Parts) -> None:
        # The real servers of these virtual servers stay in the change and drain. When the last one is gone, `_poll`
        # deletes the virtual server, its VIP and its members of sets.
        servers = self._handles.servers
        deferred = {
            virtual
            for virtual in parts.gone_virtuals
            # Inactive connections do not count: closed ones are among them for two minutes.
            if virtual.protocol != _UDP and any(state.active for _, state in servers.reals(virtual))
        }
        if not deferred:
            return
        ips = {virtual.ip for virtual in deferred}
        kept: set[Member] = set()
        for member in parts.gone_members:
            virtual = VirtualServer(member.ip, member.protocol, member.port)
            if virtual in deferred and member.set in SERVED:
                self._deferred_deletes.setdefault(virtual, []).append(member)
                kept.add(member)
            elif member.ip in ips and not member.port:
                self._deferred_ips[member.ip] = member
                kept.add(member)
        for virtual in deferred:
            self._deferred_deletes.setdefault(virtual, [])
        parts.gone_virtuals = [virtual for virtual in parts.gone_virtuals if virtual not in deferred]
        parts.gone_members = [member for member in parts.gone_members if member not in kept]
        parts.gone_vips = [ip for ip in parts.gone_vips if ip not in ips]

    def changed_externally(self) -> bool:
        """Return whether another program may have changed the device or the helper rules."""
        return not is_up() or self._handles.rules.changed_externally()

    async def examine(self) -> bool:
        """Return whether helper rules were changed in a way that `changed_externally` misses.

        Servers, sets and VIPs are compared by the next full read only.
        """
        return await self._handles.rules.examine()

    def take_counts(self) -> KernelCounts:
        """Return no counts: kube-proxy counts no rules in this mode."""
        return KernelCounts()

    def _schedule_poll(self) -> None:
        if self._draining and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_POLL_SECONDS, self._poll_some)

    def _poll_some(self) -> None:
        # The timer calls this in the event loop, so it takes some of the virtual servers at a time.
        self._timer = None
        # If a thread uses the sockets, the next timer will do.
        if self._lock.acquire(blocking=False):
            try:
                virtuals = list(self._draining)[:_POLLED_AT_ONCE]
                # To the end of the list, so that the rest is polled next.
                for virtual in virtuals:
                    self._draining[virtual] = self._draining.pop(virtual)
                self._poll(virtuals)
            except (ApplyError, OSError) as error:
                logger.warning("%s: draining: %s", self.family, error)
            finally:
                self._lock.release()
        self._schedule_poll()

    def _poll(self, virtuals: Iterable[VirtualServer]) -> None:
        servers = self._handles.servers
        now = int(time())
        quiesced: list[Message] = []
        ended: list[Message] = []
        for virtual in virtuals:
            states = dict(servers.reals(virtual))
            for real in tuple(self._draining.get(virtual, ())):
                state = states.get(real.endpoint)
                if state is None:
                    self._stop_draining(real)
                elif state.weight:
                    # Deleted by the next poll at the earliest: until this moment it may have got a connection.
                    quiesced.append(servers.change_real(real, 0, now))
                elif state.active + state.inactive == 0 or (state.since and now - state.since > DRAIN_SECONDS):
                    ended.append(servers.delete_real(real))
                    self._stop_draining(real)
                elif not state.since:
                    # It has weight 0 from a plan, as a terminating endpoint. Its time starts now.
                    quiesced.append(servers.change_real(real, 0, now))
        servers.perform_deletes(quiesced + ended)
        # Virtual servers whose last real server is gone go as well, with their members of sets and their VIPs.
        if emptied := [virtual for virtual in self._deferred_deletes if virtual not in self._draining]:
            servers.perform_deletes([servers.delete(virtual) for virtual in emptied])
            members = [member for virtual in emptied for member in self._deferred_deletes.pop(virtual)]
            # A VIP may be in use by another port that still drains, or may be wanted again.
            in_use = {virtual.ip for virtual in self._deferred_deletes}
            ips = {virtual.ip for virtual in emptied} - in_use - self._vips
            members += [self._deferred_ips.pop(ip) for ip in ips if ip in self._deferred_ips]
            self._handles.sets.delete(members)
            self._handles.vips.delete(ips)

    def _stop_draining(self, real: RealServer) -> None:
        reals = self._draining.get(real.virtual, set())
        reals.discard(real)
        if not reals:
            self._draining.pop(real.virtual, None)


def _perform(
    servers: IpvsConnection,
    entries: Mapping[K, V],
    first: Callable[[K, V], Message],
    otherwise: Callable[[K, V], Message],
) -> None:
    # A request that is refused because the object exists, or does not, is followed by the other one.
    requests = [[make(key, value) for key, value in entries.items()] for make in (first, otherwise)]
    try:
        servers.perform(*requests)
    except IpvsRefusedError as error:
        key = list(entries)[error.index]
        # Both requests were refused, so this is not about the virtual server: the kernel uses ENOENT for the scheduler as well.
        unknown = isinstance(key, VirtualServer) and error.code in (errno.ENOENT, errno.ESRCH)
        reason = "the kernel has no such scheduler" if unknown else str(error)
        message = f"{key}: {reason}"
        raise ApplyError(message, retryable=error.retryable) from error


def _parts(change: IpvsChange) -> _Parts:  # noqa: C901  # one case for each kind of entry
    parts = _Parts()
    for key, (present, wanted) in change.items():
        match key, wanted:
            case VirtualServer(), Scheduling():
                (parts.new_virtuals if present is None else parts.virtuals)[key] = wanted
            case VirtualServer(), _:
                parts.gone_virtuals.append(key)
            case RealServer(), int():
                (parts.new_reals if present is None else parts.reals)[key] = wanted
            case RealServer(), _:
                parts.gone_reals.append(key)
            case Vip(), bytes():
                parts.vips[key.ip] = wanted
            case Vip(), _:
                parts.gone_vips.append(key.ip)
            case Set(), _:
                (parts.gone_sets if wanted is None else parts.sets).append(key.name)
            case Member(), str():
                parts.members[key] = wanted
            case Member(), _:
                parts.gone_members.append(key)
            case ((ChainKey() | HookKey()), _):
                before = present if isinstance(present, str) else None
                parts.rules[key] = (before, wanted if isinstance(wanted, str) else None)
    return parts


@contextmanager
def _as_apply_error(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        message = f"{what}: {error.strerror}"
        raise ApplyError(message, retryable=True) from error
