"""One family's entries of the IPVS mode in the kernel: virtual and real servers, addresses, sets and rules.

What is added goes in before what is taken away, and in such an order that no packet meets half of a Service: sets,
virtual servers, real servers, addresses, rules. A thread does it, because a large change takes longer than the loop may stall.

Draining: a real server that shall go, of a protocol with connections, gets weight 0 and a time stamp, in the kernel, where
a restart finds them again. A timer of the loop looks at them, and removes those whose connections have ended, or whose
time is up.

Virtual servers of others are never touched. Ours are told by the sets: whatever was in one of them when it was read.
"""

import asyncio
import errno
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from time import time
from typing import TypeVar

from pyproxy.backends.interface import KernelCounts
from pyproxy.backends.iptables.kernel import IptablesKernel
from pyproxy.backends.iptables.ruleset import RulesetKey
from pyproxy.backends.ipvs.entries import IpvsKey, IpvsValue, Member, RealServer, Scheduling, Set, Vip, VirtualServer
from pyproxy.backends.ipvs.ipset import IpSets, IpsetType
from pyproxy.backends.ipvs.vips import Vips, is_up
from pyproxy.backends.ipvs.virtual_servers import IpvsConnection, IpvsRefusedError
from pyproxy.errors import ApplyError
from pyproxy.linux.netlink import Message
from pyproxy.model.address import Family, Network

logger = logging.getLogger(__name__)

DRAIN_SECONDS = 3600
"""How long a real server is waited for whose endpoint is gone and whose connections are not."""
_LOOK_SECONDS = 2.0
_LOOKS_AT_ONCE = 100
"""Virtual servers at one look: some 5 ms."""
_UDP = 17

IpvsChange = Mapping[IpvsKey, tuple[IpvsValue | None, IpvsValue | None]]
K = TypeVar("K")
V = TypeVar("V")


@dataclass(slots=True)
class _Parts:
    """A change, sorted by kind and by what is to be done."""

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

    detects_all_changes = False
    plans_per_portion: int | None = None

    def __init__(
        self, family: Family, handles: IpvsHandles, excluded: Collection[Network], served: Collection[str]
    ) -> None:
        """Remember the doors.

        Args:
            family: the family.
            handles: its parts of the kernel.
            excluded: addresses whose virtual servers are never deleted.
            served: names of the sets that hold address and port of each of our virtual servers.
        """
        self.family = family
        self._handles = handles
        self._excluded = tuple(block for block in excluded if block.family is family)
        self._served = frozenset(served)
        self._lock = Lock()
        """Held by the thread that is at work: a socket can have one conversation at a time."""
        self._foreign: set[VirtualServer] = set()
        self._vips: set[bytes] = set()
        """Addresses that are wanted."""
        self._bound: set[bytes] = set()
        """Addresses that somebody bound to the device: once our routes are there, nobody needs them."""
        self._draining: dict[VirtualServer, set[RealServer]] = {}
        """Real servers that drain: no more than a list of what to look at, read from the kernel at start."""
        self._deferred_deletes: dict[VirtualServer, list[Member]] = {}
        """Virtual servers that shall go and have connections, with the members of sets that go with them."""
        self._held_ips: dict[bytes, Member] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"IpvsKernel({self.family})"

    async def read(self) -> dict[IpvsKey, IpvsValue]:
        """Return what is there: ours, and foreign virtual servers, one of which may be in the place of one of ours."""
        found = await asyncio.to_thread(self._read_tables)
        found.update((await self._handles.rules.read()).items())
        return found

    def _read_tables(self) -> dict[IpvsKey, IpvsValue]:
        with self._lock:
            return self._read_all()

    def _read_all(self) -> dict[IpvsKey, IpvsValue]:
        handles = self._handles
        found: dict[IpvsKey, IpvsValue] = {}
        # What is there and not wanted comes back as a change; what is wanted again meanwhile must not be waited for.
        self._draining.clear()
        self._deferred_deletes.clear()
        self._held_ips.clear()
        handles.vips.ensure_device()
        with _as_apply_error("ipset"):
            names, members = handles.sets.read(handles.set_types)
        found |= {Set(name): handles.set_types[name].value[0] for name in names}
        found.update(members.items())
        with _as_apply_error("local routes"):
            found |= {Vip(ip): source for ip, source in handles.vips.read().items()}
            self._vips = {key.ip for key in found if isinstance(key, Vip)}
            self._bound = handles.vips.bound()
        with _as_apply_error("IPVS"):
            virtuals = dict(handles.servers.services(self.family))
            reals = dict(handles.servers.all_reals(virtuals, self.family))
        self._foreign = {virtual for virtual in virtuals if not self._is_ours(virtual, members)}
        found.update(virtuals.items())
        found |= {real: state.weight for real, state in reals.items()}
        return found

    def _is_ours(self, virtual: VirtualServer, members: Collection[Member]) -> bool:
        if any(virtual.ip in block for block in self._excluded):
            return False
        return any(Member(name, *virtual) in members for name in self._served)

    async def apply(self, change: IpvsChange) -> None:
        """Perform a change.

        Raises:
            ApplyError: it was not taken, or not all of it.
        """
        parts = _sorted(change)
        self._leave_foreign_alone(parts)
        self._vips = self._vips.difference(parts.gone_vips).union(parts.vips)
        await asyncio.to_thread(self._add, parts)
        if parts.rules:
            await self._handles.rules.apply(parts.rules)
        await asyncio.to_thread(self._remove, parts)
        self._look_later()

    def _leave_foreign_alone(self, parts: _Parts) -> None:
        left = self._foreign.intersection(parts.gone_virtuals)
        # Whoever applies a change has compared all that was read: what is not to go is in the place of one of ours.
        self._foreign = left
        parts.gone_virtuals = [virtual for virtual in parts.gone_virtuals if virtual not in left]
        parts.gone_reals = [real for real in parts.gone_reals if real.virtual not in left]

    def _add(self, parts: _Parts) -> None:
        with self._lock, _as_apply_error("IPVS"):
            self._add_all(parts)

    def _add_all(self, parts: _Parts) -> None:
        handles = self._handles
        handles.sets.create(parts.sets, handles.set_types)
        servers = handles.servers
        # What is there already (of others, or on its way out) is changed instead, and the other way round.
        _perform(servers, parts.new_virtuals, servers.add, servers.change)
        _perform(servers, parts.virtuals, servers.change, servers.add)
        _perform(servers, parts.new_reals, servers.add_real, servers.change_real)
        _perform(servers, parts.reals, servers.change_real, servers.add_real)
        for virtual in (*parts.new_virtuals, *parts.virtuals):
            self._deferred_deletes.pop(virtual, None)
        for real in (*parts.new_reals, *parts.reals):
            self._left(real)
        handles.sets.add(parts.members)
        if parts.vips:
            handles.vips.add(parts.vips)

    def _remove(self, parts: _Parts) -> None:
        with self._lock, _as_apply_error("IPVS"):
            self._remove_all(parts)

    def _remove_all(self, parts: _Parts) -> None:
        handles = self._handles
        self._hold(parts)
        handles.vips.delete(parts.gone_vips)
        handles.vips.unbind(self._bound)
        self._bound = set()
        handles.sets.delete(parts.gone_members)
        handles.sets.destroy(parts.gone_sets)
        self._remove_servers(parts.gone_virtuals, parts.gone_reals)

    def _remove_servers(self, virtuals: Collection[VirtualServer], reals: Iterable[RealServer]) -> None:
        servers = self._handles.servers
        servers.perform_deletes([servers.delete(virtual) for virtual in virtuals])
        for virtual in virtuals:
            self._draining.pop(virtual, None)
        gone = set(virtuals)
        staying = [real for real in reals if real.virtual not in gone]
        servers.perform_deletes([servers.delete_real(real) for real in staying if real.virtual.protocol == _UDP])
        self._drain([real for real in staying if real.virtual.protocol != _UDP])

    # Draining

    def _hold(self, parts: _Parts) -> None:
        """Take out of a change the end of virtual servers that still have connections, with all that these need.

        Their real servers leave like others; the last takes the rest with it.
        """
        candidates = [virtual for virtual in parts.gone_virtuals if virtual.protocol != _UDP]
        held = {virtual for virtual in candidates if _has_connections(self._handles.servers, virtual)}
        if not held:
            return
        ips = {virtual.ip for virtual in held}
        kept: dict[Member, None] = {}
        for member in parts.gone_members:
            virtual = VirtualServer(member.ip, member.protocol, member.port)
            if virtual in held and member.set in self._served:
                self._deferred_deletes.setdefault(virtual, []).append(member)
                kept[member] = None
            elif member.ip in ips and not member.port:
                self._held_ips[member.ip] = member
                kept[member] = None
        for virtual in held:
            self._deferred_deletes.setdefault(virtual, [])
        parts.gone_virtuals = [virtual for virtual in parts.gone_virtuals if virtual not in held]
        parts.gone_members = [member for member in parts.gone_members if member not in kept]
        parts.gone_vips = [ip for ip in parts.gone_vips if ip not in ips]

    def _release(self, virtuals: Iterable[VirtualServer]) -> None:
        """End virtual servers whose last real server is gone."""
        handles = self._handles
        ended = {virtual: self._deferred_deletes.pop(virtual) for virtual in virtuals}
        if not ended:
            return
        handles.servers.perform_deletes([handles.servers.delete(virtual) for virtual in ended])
        members = [member for group in ended.values() for member in group]
        still = {virtual.ip for virtual in self._deferred_deletes}
        ips = {virtual.ip for virtual in ended} - still - self._vips
        members += [self._held_ips.pop(ip) for ip in ips if ip in self._held_ips]
        handles.sets.delete(members)
        handles.vips.delete(ips)

    def _drain(self, reals: Collection[RealServer]) -> None:
        for real in reals:
            self._draining.setdefault(real.virtual, set()).add(real)
        self._look_at(dict.fromkeys(real.virtual for real in reals))

    def changed_externally(self) -> bool:
        """Say whether others may have changed something: device, rules."""
        return not is_up() or self._handles.rules.changed_externally()

    async def examine(self) -> bool:
        """See `Kernel`: of the rules; servers, sets and addresses are for the full read."""
        return await self._handles.rules.examine()

    def take_counts(self) -> KernelCounts:
        """Return nothing: kube-proxy counts no rules in this mode."""
        return KernelCounts()

    def _look_later(self) -> None:
        if self._draining and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._look_now)

    def _look_now(self) -> None:
        self._timer = None
        # Short enough for the loop; a thread that is at work is not waited for.
        if self._lock.acquire(blocking=False):
            try:
                self._look_round()
            finally:
                self._lock.release()
        self._look_later()

    def _look_round(self) -> None:
        virtuals = list(self._draining)[:_LOOKS_AT_ONCE]
        try:
            self._look_at(virtuals)
        except (ApplyError, OSError) as error:
            logger.warning("%s: draining: %s", self.family, error)
        # Those that were looked at go to the end.
        for virtual in virtuals:
            if virtual in self._draining:
                self._draining[virtual] = self._draining.pop(virtual)

    def _look_at(self, virtuals: Iterable[VirtualServer]) -> None:
        """Give real servers that leave weight 0, and remove those that have no connections or no time left."""
        servers = self._handles.servers
        now = int(time())
        quiet: list[Message] = []
        ended: list[Message] = []
        for virtual in virtuals:
            states = dict(servers.reals(virtual))
            for real in tuple(self._draining.get(virtual, ())):
                state = states.get(real.endpoint)
                if state is None:
                    self._left(real)
                elif state.weight:
                    # Removed at the next look: until now it may have been given a connection.
                    quiet.append(servers.change_real(real, 0, now))
                elif state.active + state.inactive == 0 or (state.since and now - state.since > DRAIN_SECONDS):
                    ended.append(servers.delete_real(real))
                    self._left(real)
                elif not state.since:
                    quiet.append(servers.change_real(real, 0, now))
        servers.perform_deletes(quiet + ended)
        self._release([virtual for virtual in self._deferred_deletes if virtual not in self._draining])

    def _left(self, real: RealServer) -> None:
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
    """Send a request for each entry, and where that one is refused because the thing is there, or is not, the other."""
    requests = [[make(key, value) for key, value in entries.items()] for make in (first, otherwise)]
    try:
        servers.perform(*requests)
    except IpvsRefusedError as error:
        key = list(entries)[error.index]
        unknown = isinstance(key, VirtualServer) and error.code in (errno.ENOENT, errno.ESRCH)
        reason = "the kernel has no such scheduler" if unknown else str(error)
        message = f"{key}: {reason}"
        raise ApplyError(message, retryable=error.retryable) from error


def _sorted(change: IpvsChange) -> _Parts:
    parts = _Parts()
    for key, (present, wanted) in change.items():
        match key:
            case VirtualServer():
                _sort_virtual(parts, key, present, wanted)
            case RealServer():
                _sort_real(parts, key, present, wanted)
            case Vip():
                _sort_vip(parts, key, wanted)
            case Set():
                (parts.gone_sets if wanted is None else parts.sets).append(key.name)
            case Member():
                _sort_member(parts, key, wanted)
            case _:
                parts.rules[key] = (_text(present), _text(wanted))
    return parts


def _sort_virtual(parts: _Parts, key: VirtualServer, present: IpvsValue | None, wanted: IpvsValue | None) -> None:
    if isinstance(wanted, Scheduling):
        (parts.new_virtuals if present is None else parts.virtuals)[key] = wanted
    else:
        parts.gone_virtuals.append(key)


def _sort_real(parts: _Parts, key: RealServer, present: IpvsValue | None, wanted: IpvsValue | None) -> None:
    if isinstance(wanted, int):
        (parts.new_reals if present is None else parts.reals)[key] = wanted
    else:
        parts.gone_reals.append(key)


def _sort_member(parts: _Parts, key: Member, wanted: IpvsValue | None) -> None:
    if isinstance(wanted, str):
        parts.members[key] = wanted
    else:
        parts.gone_members.append(key)


def _sort_vip(parts: _Parts, key: Vip, wanted: IpvsValue | None) -> None:
    if isinstance(wanted, bytes):
        parts.vips[key.ip] = wanted
    else:
        parts.gone_vips.append(key.ip)


def _text(value: IpvsValue | None) -> str | None:
    return value if isinstance(value, str) else None


def _has_connections(servers: IpvsConnection, virtual: VirtualServer) -> bool:
    # Closed ones count as inactive for two minutes: nobody misses them.
    return any(state.active for _, state in servers.reals(virtual))


@contextmanager
def _as_apply_error(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        message = f"{what}: {error.strerror}"
        raise ApplyError(message, retryable=True) from error
