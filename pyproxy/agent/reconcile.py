"""Keeps the kernel tables of one family in sync with the plans: stages changed plans, writes the difference of entries.

The invariant: memory follows the kernel. A plan counts as applied only after the kernel has accepted it. After a rejected
transaction the entries in the kernel are read again, and the transaction is bisected to find the Service port at fault.
That port is quarantined: it keeps its last good entries, and all other ports are programmed. A full sync, adoption at the
start, a change and the repair of drift are the same comparison; they differ in where the present entries come from.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from time import monotonic
from typing import Generic, TypeVar

from pyproxy.backends.drift import Drift
from pyproxy.backends.interface import Kernel, KernelCounts, Program, changed_entries
from pyproxy.errors import ApplyError
from pyproxy.logs import V2
from pyproxy.model.address import Family
from pyproxy.model.event import event_extra
from pyproxy.model.names import ServicePortName
from pyproxy.plan.planner import FinalPlans
from pyproxy.plan.service_plan import ServicePlan
from pyproxy.plan.service_values import SyncState

logger = logging.getLogger(__name__)

K = TypeVar("K")
V = TypeVar("V")
_MOST_PERIODS_BETWEEN_TRIES = 32
"""Limit of the doubling: a quarantined port is retried at least every 32 sync periods, about 16 minutes by default."""
_PLANS_PER_SLICE = 200
"""Plans compiled before other tasks get a turn: about 10 ms."""
_KEYS_PER_SLICE = 5_000
"""Keys compared before other tasks get a turn: less than 10 ms."""


@dataclass(slots=True)
class Quarantine:
    """A Service port whose last plan the kernel rejected."""

    refused: ServicePlan | None
    error: str
    tries: int = 1
    periods_left: int = 1
    """Sync periods until the next try; doubles with each rejection."""


@dataclass(slots=True)
class SyncReport:
    """What one sync did in one family."""

    entries_changed: int = 0
    taken: dict[ServicePortName, tuple[ServicePlan | None, ServicePlan | None]] = field(default_factory=dict)
    """By port, the plan that the kernel had and the plan that it has now."""
    refused: list[ServicePortName] = field(default_factory=list)
    drift: Drift | None = None
    """What another program had changed; the sync has repaired it. None: nothing, or what pyproxy wrote is not known exactly."""
    repaired: dict[ServicePortName, ServicePlan] = field(default_factory=dict)
    """All unchanged ports with their plans if the sync wrote entries that should have existed: any may have been missing."""
    error: ApplyError | None = None
    """Why the sync ended early. The plans in `taken` are in the kernel nevertheless, the rest stays staged."""
    is_full: bool = False
    """Whether all entries were compared with the kernel, not only changed ones."""
    failed_transactions: int = 0
    """Transactions that the kernel rejected, including those of the bisection."""
    seconds: float = 0.0
    counts: KernelCounts = field(default_factory=KernelCounts)
    """Counts of the mode's `Kernel` during the sync."""

    def flow_changes(self) -> list[tuple[ServicePlan | None, ServicePlan | None]]:
        """Return the plans before and after the sync of all ports that may have stale flows.

        A flow that began while entries were missing is tracked as if there had been no Service.
        """
        return [*((None, plan) for plan in self.repaired.values()), *self.taken.values()]


class Reconciler(Generic[K, V]):
    """One family in one backend."""

    def __init__(self, family: Family, program: Program[K, V], kernel: Kernel[K, V]) -> None:
        self.family = family
        self.quarantined: dict[ServicePortName, Quarantine] = {}
        self._program = program
        self._kernel = kernel
        self._applied_plans: dict[ServicePortName, ServicePlan] = {}
        self._staged: dict[ServicePortName, ServicePlan | None] = {}
        self._applied: dict[K, V] = {}
        """The entries in the kernel."""
        self._is_exact = False
        """Whether `_applied` is what the last sync left in the kernel. If not, a difference may be pyproxy's own."""
        self._leftovers: set[K] = set()
        """Entries that the last read found and that a sync leaves in place for now, if they are not wanted."""
        self._drift: Drift | None = None
        """What the last read found, until a sync has repaired it."""
        self._in_flight: Collection[K] = ()
        """The entries that are being written."""
        self._checking = asyncio.Lock()
        self._written_meanwhile: set[K] | None = None
        """The entries that were written during a check; None if there is none."""
        self._is_known = False
        """Whether `_applied` is up to date. If not, the next sync reads the kernel."""
        self.synced_at: float | None = None
        """When a sync last succeeded, as `monotonic` counts; None if none has."""
        self.error = ""
        """Why the last sync failed; empty if it succeeded."""
        self._is_compiled = True
        """Whether the program has all applied plans. If not, the next sync puts them into it."""

    def __repr__(self) -> str:
        return f"Reconciler({self.family}, {len(self._applied_plans)} ports, {len(self._staged)} staged)"

    @property
    def port_count(self) -> int:
        """Return the number of Service ports whose plans are in the kernel."""
        return len(self._applied_plans)

    @property
    def pending(self) -> bool:
        """Return whether a sync has work to do; quarantined ports do not count."""
        return bool(self._staged) or not self._is_known

    @property
    def is_comparable(self) -> bool:
        """Return whether the agent knows exactly which entries should be in the kernel."""
        return self._is_known and self._is_exact

    @property
    def detects_all_changes(self) -> bool:
        """Return whether `changed_externally` detects every external change."""
        return self._kernel.detects_all_changes

    @property
    def change_descriptor(self) -> int | None:
        """Return a file descriptor that is readable after a change; None if the kernel does not notify of changes."""
        return self._kernel.change_descriptor

    def changed_externally(self) -> bool:
        """Return whether another program may have changed our tables."""
        return self._kernel.changed_externally()

    async def examine(self) -> bool:
        """Return whether another program may have made a change that `changed_externally` does not detect."""
        return await self._kernel.examine()

    def mark_stale(self) -> None:
        """Make the next sync a full one, which reads the kernel and repairs differences."""
        self._is_known = False

    def replace_program(self, program: Program[K, V]) -> None:
        """Replace the program, as settings changed: the next sync compiles every port again and writes the difference."""
        self._program = program
        self._is_compiled = False
        self._is_known = False

    def stage(self, plans: FinalPlans) -> None:
        """Keep plans for the next sync; a plan that the kernel already has is not staged."""
        for name, plan in plans.items():
            if self._applied_plans.get(name) == plan and name not in self.quarantined:
                self._staged.pop(name, None)
            else:
                self._staged[name] = plan

    def release_due(self) -> None:
        """Count one sync period, and stage the quarantined ports that are due for another try."""
        for name, quarantine in self.quarantined.items():
            quarantine.periods_left -= 1
            if quarantine.periods_left <= 0 and name not in self._staged:
                self._staged[name] = quarantine.refused

    def sync_state(self, name: ServicePortName, plan: ServicePlan) -> tuple[SyncState, str]:
        """Return whether the kernel has a plan, and the kernel's error if it refused it."""
        if (quarantine := self.quarantined.get(name)) is not None:
            return SyncState.QUARANTINED, quarantine.error
        if name in self._staged or self._applied_plans.get(name) != plan:
            return SyncState.PENDING, ""
        return (SyncState.PROGRAMMED if self._is_known else SyncState.STALE), ""

    async def sync(self) -> SyncReport:
        """Write the staged plans to the kernel.

        If the sync fails, the report has the error, plans that the kernel did not accept stay staged, and the next sync
        reads the kernel before it writes.
        """
        staged, self._staged = self._staged, {}
        report = SyncReport(is_full=not self._is_known)
        started = monotonic()
        try:
            await self._sync(staged, report)
        except ApplyError as error:
            self._is_known = self._is_exact = False
            self._staged = {name: plan for name, plan in staged.items() if name not in report.taken} | self._staged
            report.error = error
            self.error = str(error)
        else:
            self.synced_at, self.error, self._is_exact = monotonic(), "", True
            report.drift, self._drift = self._drift, None
        report.seconds = monotonic() - started
        report.counts = self._kernel.take_counts()
        self._leftovers = set()
        if report.error is None:
            milliseconds, entries, known = report.seconds * 1000, report.entries_changed, len(self._applied_plans)
            logger.log(
                V2 if report.taken or report.refused or entries else logging.DEBUG,
                "%s: %s sync done in %.1f ms: %s, %d refused, %d entries written",
                self.family,
                "full" if report.is_full else "partial",
                milliseconds,
                # After a restart all plans are new to the agent, although the kernel may have the rules of all.
                f"{known} Service ports compared with the kernel"
                if report.is_full
                else f"{len(report.taken)} of {known} Service ports changed",
                len(report.refused),
                entries,
                extra={"duration_ms": round(milliseconds, 1), "entries": entries},
            )
        return report

    async def _sync(self, staged: FinalPlans, report: SyncReport) -> None:
        suspects = {name: staged[name] for name in self.quarantined if name in staged}
        trusted = {name: plan for name, plan in staged.items() if name not in suspects} if suspects else staged
        touched: dict[K, None] = {}
        if not self._is_compiled:
            await self._put(self._applied_plans)
            self._is_compiled = True
        if not self._is_known:
            self._is_known = True  # before the read, which may or may not see changes that are made meanwhile
            written, leftovers = self._applied, {*self._kernel.leftovers()}
            self._applied = await self._kernel.read()
            self._leftovers = leftovers.union(self._kernel.leftovers())
            if self._is_exact:
                self._drift = await self._drift_from(written, self._applied, self._leftovers)
            # In the program's order: the position of an entry can depend on those written before it, as with hooks.
            touched = dict.fromkeys((*self._program.keys(), *self._applied))
        await self._apply_plans(trusted, touched, report)
        # A sync that failed may have written: the entries are then right already, but flows began while they were missing.
        if report.is_full and (report.entries_changed or self.error):
            report.repaired = {name: plan for name, plan in self._applied_plans.items() if name not in report.taken}
        for name, plan in suspects.items():
            await self._apply_plans({name: plan}, (), report)

    async def _apply_plans(self, plans: FinalPlans, touched: Iterable[K], report: SyncReport) -> None:
        """Apply plans in one transaction; if the kernel rejects it, bisect it to find the ports at fault."""
        before = {name: self._applied_plans.get(name) for name in plans}
        keys = dict.fromkeys(touched)
        try:
            size = self._kernel.plans_per_portion
            if size is not None and size < len(plans) and not self._applied:
                report.entries_changed += await self._load(plans, keys, size)
            else:
                keys.update(dict.fromkeys(await self._put(plans)))
                report.entries_changed += await self._write(keys)
        except ApplyError as error:
            report.failed_transactions += 1
            await self._put(before)
            if error.retryable or not plans:
                raise
            await self._bisect(plans, keys, error, report)
            return
        for name, plan in plans.items():
            if plan is None:
                self._applied_plans.pop(name, None)
            else:
                self._applied_plans[name] = plan
            report.taken[name] = (before[name], plan)
            if self.quarantined.pop(name, None) is not None:
                about = event_extra("Service", name.service, "RulesAccepted", "ProgramRules")
                logger.info("%s: %s: accepted now, out of quarantine", self.family, name, extra=about)

    async def _bisect(self, plans: FinalPlans, keys: Iterable[K], error: ApplyError, report: SyncReport) -> None:
        self._applied = await self._kernel.read()
        if len(plans) == 1:
            (name, plan), *_ = plans.items()
            # Its last good entries, and the other entries of the transaction.
            await self._apply_plans({}, keys, report)
            known = self.quarantined.get(name)
            if known is not None and known.refused == plan:
                # The same plan, rejected again. A repaired rule set or a loaded kernel module may make it acceptable later.
                known.tries += 1
                known.periods_left = min(1 << (known.tries - 1), _MOST_PERIODS_BETWEEN_TRIES)
            else:
                about = event_extra("Service", name.service, "RulesRefused", "ProgramRules")
                logger.error("%s: %s: refused by the kernel, in quarantine: %s", self.family, name, error, extra=about)
                self.quarantined[name] = Quarantine(plan, str(error))
            report.refused.append(name)
            return
        # First without any plan: if that is rejected too, no Service is at fault, and the error is returned.
        await self._apply_plans({}, keys, report)
        names = sorted(plans)
        for half in (names[: len(names) // 2], names[len(names) // 2 :]):
            await self._apply_plans({name: plans[name] for name in half}, (), report)

    async def _load(self, plans: FinalPlans, keys: dict[K, None], size: int) -> int:
        """Compile plans in portions, each while the kernel applies the one before; adds their keys to `keys`."""
        names, written = list(plans), 0
        writing = asyncio.create_task(self._write(keys.copy()))
        try:
            for start in range(0, len(names), size):
                portion = dict.fromkeys(await self._put({name: plans[name] for name in names[start : start + size]}))
                keys |= portion
                written += await writing
                writing = asyncio.create_task(self._write(portion))
            return written + await writing
        finally:
            await asyncio.gather(writing, return_exceptions=True)

    async def _put(self, plans: FinalPlans) -> set[K]:
        touched: set[K] = set()
        for count, (name, plan) in enumerate(plans.items(), start=1):
            touched |= self._program.put(name, plan)
            if count % _PLANS_PER_SLICE == 0:
                await asyncio.sleep(0)
        return touched

    async def find_drift(self) -> Drift | None:
        """Compare the kernel with what pyproxy wrote, while syncs go on; None if nothing differs, or a full sync is due.

        Raises:
            ApplyError: the kernel cannot be read.
        """
        async with self._checking:
            first = await self._look_for_drift()
            # A table is not read in one moment, so what was read while pyproxy changed it proves nothing. A second look
            # decides.
            again = await self._look_for_drift() if first is not None else None
        if first is None or again is None:
            return None
        return again.restricted_to(first.changed)

    async def _look_for_drift(self) -> Drift | None:
        if not self.is_comparable:
            return None
        meanwhile = self._written_meanwhile = {*self._in_flight}
        try:
            leftovers = {*self._kernel.leftovers()}
            present = await self._kernel.peek()
            leftovers.update(self._kernel.leftovers())
            written = self._applied.copy()
            drift = await self._drift_from(written, present, leftovers)
        finally:
            self._written_meanwhile = None
        if drift is None or not self._is_exact:
            return None
        return drift.restricted_to({key: None for key in drift.changed if key not in meanwhile})

    async def _drift_from(
        self, written: Mapping[K, V], present: Mapping[K, V], leftovers: Collection[K]
    ) -> Drift | None:
        found = await _compared({**written, **present}, present, written.get)
        changed = {key: pair for key, pair in found.items() if pair[1] is not None or key not in leftovers}
        return Drift(changed, written) if changed else None

    async def _write(self, keys: Iterable[K]) -> int:
        change = await _compared(keys, self._applied, self._program.value)
        self._in_flight = change.keys()
        if self._written_meanwhile is not None:
            self._written_meanwhile.update(change)
        try:
            if change:
                await self._kernel.apply(change)
        finally:
            self._in_flight = ()
        self._applied.update({key: wanted for key, (_, wanted) in change.items() if wanted is not None})
        for key, (_, wanted) in change.items():
            if wanted is None:
                self._applied.pop(key, None)
        return sum(wanted is not None or key not in self._leftovers for key, (_, wanted) in change.items())


async def _compared(
    keys: Iterable[K], present: Mapping[K, V], wanted: Callable[[K], V | None]
) -> dict[K, tuple[V | None, V | None]]:
    """Return the entries that differ, as `changed_entries` does; other tasks get turns."""
    change: dict[K, tuple[V | None, V | None]] = {}
    rest = iter(keys)
    while part := tuple(islice(rest, _KEYS_PER_SLICE)):
        change |= changed_entries(part, present, wanted)
        if len(part) == _KEYS_PER_SLICE:
            await asyncio.sleep(0)
    return change
