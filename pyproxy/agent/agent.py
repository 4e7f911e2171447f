"""The running agent: one asyncio loop that owns all state.

One task applies the events of the source to the tracker. The sync task plans dirty Services and writes the changes to the
kernel; events that arrive meanwhile wait for the next sync. Two tasks detect changes that other programs make in the kernel.
"""

import asyncio
import gc
import logging
import math
from collections.abc import Awaitable, Callable, Collection, Coroutine, Hashable, Iterable
from contextlib import suppress
from time import monotonic
from typing import Any

from pyproxy.agent.current_marker import CurrentMarker
from pyproxy.agent.drift_report import DriftReporter
from pyproxy.agent.flow_cleaner import FlowCleaner
from pyproxy.agent.health import AgentHealth
from pyproxy.agent.observer import Observer
from pyproxy.agent.reconcile import Reconciler
from pyproxy.agent.schedule import Schedule
from pyproxy.agent.service_report import ServiceReporter
from pyproxy.agent.sources import EventQueue
from pyproxy.backends.drift import DriftDocument
from pyproxy.backends.interface import Backend
from pyproxy.config.config import OPTIONS, Config
from pyproxy.errors import ApplyError
from pyproxy.linux.addresses import AddressNotifications, local_addresses
from pyproxy.linux.local_networks import local_networks
from pyproxy.linux.readiness import wait_readable
from pyproxy.linux.systemd_notify import notify, watchdog_seconds
from pyproxy.model.address import Family, Network
from pyproxy.model.change import Kind, ProblemsChanged, WatchState
from pyproxy.model.names import NamespacedName
from pyproxy.model.node import Node
from pyproxy.model.request_record import RequestRecord
from pyproxy.model.tracker import Tracker
from pyproxy.node.context import NodeContext
from pyproxy.node.localhost_relay import Relay
from pyproxy.node.own_node import OwnNode
from pyproxy.plan.localhost import relay_changes
from pyproxy.plan.planner import Planner
from pyproxy.plan.service_values import ServiceList

logger = logging.getLogger(__name__)

_LOOK_PERIOD_SECONDS = 0.5
"""Time between two quick looks for external changes, or the shortest time if the kernel notifies of changes."""
_LONGEST_WAIT_SECONDS = 5.0
"""Longest time between two such looks, which also find elements that could not be deleted."""
_LOOKS_PER_READ = 20
"""A full read may take one part in this many of the time, also on a node where another program keeps writing rules."""
_EXAMINATION_SECONDS = 60.0
"""Time between examinations for changes that the quick look cannot detect."""
_PERIODS_PER_CHECK = 10
"""Most sync periods between checks for drift, in modes that cannot detect every external change."""
_PAUSES_PER_CHECK = 4
"""Checks for drift take at most a fifth of the time, however short the interval and however large the tables."""
_NODE_WAIT_SECONDS = 30.0
_GC_THRESHOLDS = gc.get_threshold()
_GC_THRESHOLDS_AT_START = (1_000_000, 50, 100)
_PLANS_PER_SLICE = 200
"""Services planned before other tasks get a turn: about 10 ms."""
_BEATS_PER_WATCHDOG = 3
"""Watchdog notifications in the time after which systemd would restart the agent, so that one may be late."""


class Agent:
    """Keeps the kernel of this network namespace in sync with the objects of a source."""

    def __init__(  # noqa: PLR0913  # the parts of a running agent, each made on its own
        self,
        config: Config,
        backend: Backend,
        node_name: str,
        *,
        tracker: Tracker,
        observer: Observer,
        health: AgentHealth,
    ) -> None:
        self._config = config
        self._backend = backend
        self._own_node = OwnNode(config, node_name)
        self._health = health
        self._tracker = tracker
        self._planner = Planner(backend.families)
        self._reconcilers: dict[Family, Reconciler[Any, Any]] = {}
        self._reporter = ServiceReporter(tracker, self._planner, self._reconcilers)
        self._settings: dict[Family, Hashable] = {}
        self._local_ips: Collection[bytes] = frozenset()
        self._followed_ips: Collection[bytes] = self._local_ips
        """The addresses with which the rules in the kernel were made."""
        self._observer = observer
        self._flows = FlowCleaner(observer.cleaned_flows)
        self._relay = Relay(observer)
        self._drift_reporter = DriftReporter(config, backend.mode, node_name)
        self._marker = CurrentMarker(config.control_socket)
        self._stale_addresses = backend.follows_local_ips
        self._wake = asyncio.Event()
        self._is_ready = asyncio.Event()
        """Set after the first sync."""
        self._is_syncing = False
        self._remove_stale: Callable[[], Coroutine[Any, Any, None]] | None = None
        self._stale_removal: asyncio.Task[None] | None = None
        self._beat_seconds = watchdog_seconds() / _BEATS_PER_WATCHDOG
        self._schedule = Schedule(config.min_sync_period_seconds, config.sync_period_seconds)

    async def run(self, events: EventQueue, remove_stale: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run until cancelled. Rules are left in place.

        Args:
            events: what the source has received and will receive.
            remove_stale: called once, when this mode's rules are complete; removes rules of other modes and proxies.
        """
        self._remove_stale = remove_stale
        self._backend.prepare()
        self._health.begin(self._backend)
        self._observer.serves(self, self._marker.read())
        # Objects that arrive before the first sync stay alive: repeated garbage collection took as long as planning.
        gc.set_threshold(*_GC_THRESHOLDS_AT_START)
        notifications = AddressNotifications(self._address_changed)
        asyncio.get_running_loop().call_later(_NODE_WAIT_SECONDS, self._stop_waiting_for_node)
        try:
            async with asyncio.TaskGroup() as tasks:
                # All tasks run in one loop, which changes from one to another at an `await` only; so no state needs a lock.
                tasks.create_task(self._take_events(events))
                tasks.create_task(self._sync_forever())
                tasks.create_task(self._look_forever())
                tasks.create_task(self._examine_forever())
                tasks.create_task(self._check_forever())
                tasks.create_task(self._count_periods())
                tasks.create_task(self._flows.run(self._node_port_networks))
        finally:
            # If the rules are up to date, the marker gets the time of this end; the next run tells from it how old they are.
            notifications.close()
            self._mark_current()
            # If the end of the loop cancelled this task, it would also cancel asyncio's own task that connects the pipes of
            # a child process, and the start of the process would never return (Python 3.11,
            # `BaseSubprocessTransport._wait`).
            if self._stale_removal is not None:
                self._stale_removal.cancel()
                await asyncio.gather(self._stale_removal, return_exceptions=True)
            self._relay.close()

    def find(self, query: str) -> tuple[int, list[NamespacedName]]:
        """Return the number of all Services, and the names of those that match (`ServiceReporter.find`), in any thread."""
        return self._reporter.find(query)

    async def services(self, names: Iterable[NamespacedName] | None = None) -> ServiceList:
        """Return all Services, or those with these names, as this node serves them, and whether the kernel has their rules."""
        context = NodeContext(node=self._own_node.node, local_ips=self._local_ips)
        ips = {family: self._backend.node_port_ips(family, context) for family in self._backend.families}
        return await self._reporter.report(context.node, self._backend.mode.value, ips, names)

    async def objects(self) -> bytes:
        """Return the objects of the cluster and the settings as JSON, see `ServiceReporter.objects`."""
        default = Config()
        settings = {
            name: option.grammar.write(value)
            for name, option in OPTIONS.items()
            if (value := option.value(self._config)) != option.value(default) and value is not None
        }
        return await self._reporter.objects(self._own_node.node, self._backend.mode.value, settings)

    async def drift(self) -> DriftDocument:
        """Compare the kernel with what the agent wrote.

        Raises:
            ApplyError: the kernel cannot be read.
            ValueError: the agent is about to read the kernel itself, and repairs what differs.
        """
        if not (self._reconcilers and all(each.is_comparable for each in self._reconcilers.values())):
            message = "a full sync is due, which repairs all differences; try again"
            raise ValueError(message)
        return await self._drift_reporter.document(self._reconcilers.values())

    async def _take_events(self, events: EventQueue) -> None:
        while True:
            match await events.get():
                case WatchState(kind, reason):
                    self._health.watched(kind, reason)
                    self._observer.watched(kind, reason)
                case ProblemsChanged(appeared, gone):
                    self._observer.problems_changed(appeared, gone)
                case RequestRecord() as request:
                    self._observer.requested(request)
                case change:
                    self._tracker.apply(change)
                    self._observer.delivered(change)
                    if self._tracker.knows(Kind.NODE):
                        self._own_node.listed(self._tracker.node)
                        self._observer.knows_node(self._own_node.node)
                        self._health.knows_node(self._tracker.node)
                    self._wake.set()

    def _stop_waiting_for_node(self) -> None:
        self._own_node.stop_waiting()
        self._wake.set()

    def _address_changed(self) -> None:
        if self._backend.follows_local_ips:
            self._stale_addresses = True
            self._wake.set()
        else:
            self._flows.note_addresses()

    async def _node_port_networks(self, family: Family) -> Collection[Network]:
        networks = await asyncio.to_thread(local_networks, family)
        context = NodeContext(node=self._own_node.node, local_ips=self._local_ips)
        return self._backend.node_port_networks(family, context, networks)

    # Syncing

    async def _sync_forever(self) -> None:
        while True:
            self._wake.clear()  # before the look for work, so that an event that arrives after it ends the wait below
            # The watchdog is notified only here, between syncs, so that it expires if a sync never ends.
            if math.isfinite(self._beat_seconds):
                notify("WATCHDOG=1")
            # Before both lists are complete and the Node is known, a write would cut live traffic.
            may_write = (
                self._tracker.knows(Kind.SERVICE, Kind.ENDPOINT_SLICE)
                and not self._own_node.is_awaited
                and self._backend.is_ready_for(self._own_node.node)
            )
            pending = any(reconciler.pending for reconciler in self._reconcilers.values())
            if not (may_write and (pending or not self._reconcilers or self._tracker.pending or self._stale_addresses)):
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._beat_seconds):
                        await self._wake.wait()
                continue
            self._health.queued()
            self._observer.queued()
            # Events do not end this pause: they wait for the sync in any case, and a burst of them must not keep the loop busy.
            if (delay := self._schedule.earliest() - monotonic()) > 0:
                await asyncio.sleep(min(delay, self._beat_seconds))
                continue
            started = monotonic()
            self._is_syncing = True
            fine = await self._sync()
            self._is_syncing = False
            if fine:
                self._schedule.succeeded(started, monotonic())
                self._mark_current()
            else:
                self._schedule.failed(monotonic())

    async def _sync(self) -> bool:
        if self._stale_addresses and not self._read_addresses():
            return False
        node = self._own_node.node
        service_cidrs = self._tracker.take_service_cidrs()
        context = NodeContext(node=node, local_ips=self._local_ips, service_cidrs=service_cidrs)
        self._update_programs(context)
        self._observer.planned(self._tracker.take_triggers())
        await self._plan(node)
        pending = [reconciler for reconciler in self._reconcilers.values() if reconciler.pending]
        # Both families at the same time: while one waits for the kernel, the other computes.
        reports = await asyncio.gather(*(reconciler.sync() for reconciler in pending))
        failed: set[Family] = set()
        for reconciler, report in zip(pending, reports, strict=True):
            # Flows are deleted after the change of rules: a packet between the two would create a stale flow again.
            self._flows.note(report.flow_changes())
            if self._backend.relays_localhost(reconciler.family):
                listening = self._relay.change(reconciler.family, relay_changes(report.taken.values()))
                if not self._is_ready.is_set():  # later syncs do not wait for the relay's thread
                    await asyncio.wrap_future(listening)
            self._observer.synced(reconciler, report)
            self._drift_reporter.note(reconciler.family, report.drift)
            if report.error is not None:
                failed.add(reconciler.family)
                logger.error("%s: sync failed, will be tried again: %s", reconciler.family, report.error)
        for reconciler in self._reconcilers.values():
            if not reconciler.pending:
                self._observer.settled(reconciler)
        self._health.synced(self._reconcilers.keys() - failed, context)
        # An address is new to the flows only now, for the same reason.
        if not failed and self._local_ips is not self._followed_ips:
            self._followed_ips = self._local_ips
            self._flows.note_addresses()
        if not failed and not self._is_ready.is_set() and self._reconcilers:
            self._first_sync_done()
        return not failed

    def _read_addresses(self) -> bool:
        """Read the addresses of the node; return whether that succeeded."""
        self._stale_addresses = False  # before the read, which may or may not see changes that are made meanwhile
        try:
            self._local_ips = local_addresses()
        except ApplyError as error:
            self._stale_addresses = True
            logger.error("sync failed, will be tried again: %s", error)  # noqa: TRY400  # the message is complete
            return False
        return True

    def _first_sync_done(self) -> None:
        # systemd starts units that are ordered after this one once they can use Services, so READY follows the first sync.
        self._is_ready.set()
        counts = ", ".join(f"{each.port_count} {each.family}" for each in self._reconcilers.values())
        mode = self._backend.mode.value
        logger.info("first sync done: %s Service ports in %s mode", counts, mode, extra={"mode": mode})
        notify("READY=1")
        # The present objects stay alive. Without freeze a full collection would traverse all of them and block the loop.
        gc.freeze()
        gc.set_threshold(*_GC_THRESHOLDS)
        # Rules of other modes and proxies go last: until now they served the traffic. It is a task, because changes must not
        # wait for the removal of many rules.
        if self._remove_stale:
            self._stale_removal = asyncio.create_task(self._run_stale_removal(self._remove_stale()))

    async def _run_stale_removal(self, removal: Awaitable[None]) -> None:
        try:
            await removal
        except ApplyError as error:
            logger.warning("rules of another mode are still there, `pyproxy cleanup` removes all: %s", error)

    def _update_programs(self, context: NodeContext) -> None:
        for family in self._backend.families:
            settings = self._backend.settings(family, context)
            # Rules can depend on addresses of the node and other values of it; only if one changes are all compiled again.
            if settings == self._settings.get(family):
                continue
            self._settings[family] = settings
            program = self._backend.program(settings)
            known = self._reconcilers.get(family)
            if known is None:
                self._reconcilers[family] = Reconciler(family, program, self._backend.kernel(family))
            else:
                known.replace_program(program)

    async def _plan(self, node: Node) -> None:
        for count, planned in enumerate(self._planner.take_changes(self._tracker, node), start=1):
            self._health.plan(planned.name, planned.service, planned.slices, node)
            for family, plans in planned.plans.items():
                self._reconcilers[family].stage(plans)
            if count % _PLANS_PER_SLICE == 0:
                await asyncio.sleep(0)

    # Detecting external changes

    async def _look_forever(self) -> None:
        while True:
            await asyncio.sleep(max(_LOOK_PERIOD_SECONDS, _LOOKS_PER_READ * self._schedule.duration))
            # The first look subscribes. Then nothing has to be looked for until a transaction of any process.
            descriptors = [reconciler.change_descriptor for reconciler in self._reconcilers.values()]
            notified = {each for each in descriptors if each is not None}
            if notified and None not in descriptors:
                await wait_readable(notified, _LONGEST_WAIT_SECONDS)
            if self._is_syncing:
                continue  # families may share a counter, and it does not account for a transaction in flight
            for reconciler in self._reconcilers.values():
                try:
                    is_stale = not reconciler.pending and reconciler.changed_externally()
                except ApplyError:
                    # A sync reads the kernel as well: it reports the error, and is repeated at growing intervals.
                    is_stale = True
                if is_stale:
                    reconciler.mark_stale()
                    self._wake.set()

    async def _examine_forever(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_PERIOD_SECONDS)
            if not self._is_ready.is_set() or self._is_syncing:
                continue
            for reconciler in self._reconcilers.values():
                try:
                    if not reconciler.detects_all_changes and await reconciler.examine():
                        reconciler.mark_stale()
                        self._wake.set()
                except ApplyError as error:
                    logger.warning("%s: cannot look for external changes: %s", reconciler.family, error)
            await asyncio.sleep(_EXAMINATION_SECONDS)

    async def _check_forever(self) -> None:
        """Compare all entries with the kernel periodically, which finds what the other two do not look at."""
        await self._is_ready.wait()
        interval, duration = self._config.drift_check_interval_seconds, 0.0
        if not all(reconciler.detects_all_changes for reconciler in self._reconcilers.values()):
            interval = min(interval, _PERIODS_PER_CHECK * self._config.sync_period_seconds)
        while interval:
            await asyncio.sleep(max(interval, _PAUSES_PER_CHECK * duration))
            duration = 0.0
            for reconciler in self._reconcilers.values():
                started = monotonic()
                try:
                    if await reconciler.find_drift() is not None:
                        reconciler.mark_stale()
                        self._wake.set()
                except ApplyError as error:
                    logger.warning("%s: cannot look for external changes: %s", reconciler.family, error)
                self._observer.checked(reconciler.family, monotonic() - started)
                duration += monotonic() - started

    async def _count_periods(self) -> None:
        while True:
            await asyncio.sleep(self._config.sync_period_seconds)
            for reconciler in self._reconcilers.values():
                reconciler.release_due()
            self._wake.set()
            self._mark_current()

    def _mark_current(self) -> None:
        """Remember that the kernel has what the cluster wants, if that is so."""
        # A sync in progress has taken its plans, and one that was cancelled keeps the flag: what it wrote is unknown.
        has_all = self._is_ready.is_set() and not self._is_syncing and not self._tracker.pending
        if has_all and self._health.is_watching and not any(each.pending for each in self._reconcilers.values()):
            self._marker.set()
