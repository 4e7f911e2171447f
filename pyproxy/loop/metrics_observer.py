"""What the agent does, as metrics. Each observation costs what the change costs, not what the cluster is large."""

from collections import Counter
from collections.abc import Collection, Mapping
from time import monotonic, time
from typing import Any

from pyproxy.apply.kernel import Kernel
from pyproxy.compile.plan import ServicePlan, Verdict
from pyproxy.config import ProxyMode
from pyproxy.errors import ApplyError
from pyproxy.loop.observer import Observer
from pyproxy.loop.reconcile import Reconciler, SyncReport
from pyproxy.model.address import Family
from pyproxy.model.change import Change, Kind, Put, Removed, Replaced
from pyproxy.model.endpoint import EndpointSlice
from pyproxy.model.exchange import Exchange
from pyproxy.model.names import NamespacedName
from pyproxy.model.ruleset import TABLES, ChainKey, HookKey
from pyproxy.model.service import Service
from pyproxy.model.tracker import MOST_TRIGGERS, Triggers
from pyproxy.serve.metrics import Metrics
from pyproxy.serve.statusz import Board, FamilyStatus

_POLICIES = ("internal", "external")
_KINDS = ("service_port", "cluster_ip", "external_ip", "load_balancer_ip", "node_port", "endpoint")
"""What is counted of what the kernel has; an endpoint counts for each Service port that leads to it."""


class MetricsObserver(Observer):
    """Turns what it is told into values of metrics.

    Args:
        metrics: takes the values.
        board: shows some of them to people.
        mode: of the agent; iptables rules are counted in iptables mode only.
        families: of the agent.
    """

    def __init__(self, metrics: Metrics, board: Board, mode: ProxyMode, families: Collection[Family]) -> None:
        self._metrics = metrics
        self._board = board
        self._observed = _OBSERVED.get(mode, _ObservedKernel)
        self._kernels: dict[Family, _ObservedKernel] = {}
        self._distrusted: set[Family] = set()
        self._programmed = {family: dict.fromkeys((*_KINDS, *_POLICIES), 0) for family in families}
        """How much of each kind the kernel has; and by traffic policy, ports that are dropped here and served elsewhere."""
        self._triggers: dict[Family, dict[NamespacedName, list[float]]] = {family: {} for family in families}
        """When changes were made that no sync has settled yet, in seconds since 1970."""
        for family in families:
            board.families[family] = FamilyStatus(dict.fromkeys(_KINDS, 0))

    def delivered(self, change: Change) -> None:
        """See `Observer`."""
        match change:
            case Put(object=Service()) | Removed(kind=Kind.SERVICE):
                self._metrics.add_service_changes(1)
            case Put(object=EndpointSlice()) | Removed(kind=Kind.ENDPOINT_SLICE):
                self._metrics.add_endpoint_changes(1)
            case Replaced(kind=Kind.SERVICE, objects=objects):
                self._metrics.add_service_changes(len(objects))
            case Replaced(kind=Kind.ENDPOINT_SLICE, objects=objects):
                self._metrics.add_endpoint_changes(len(objects))

    def queued(self) -> None:
        """See `Observer`."""
        for family in self._programmed:
            self._metrics.set_queued(family, time())

    def planned(self, triggers: Triggers) -> None:
        """See `Observer`; what was changed before we began is not measured, as nobody could have been faster."""
        self._metrics.set_nothing_pending()
        for (family, service), moments in triggers.items():
            if family in self._triggers:
                waiting = self._triggers[family].setdefault(service, [])
                waiting += [moment for moment in moments if moment > self._board.started_at]
                del waiting[MOST_TRIGGERS:]

    def settled(self, reconciler: Reconciler[Any, Any]) -> None:
        """See `Observer`."""
        family, now = reconciler.family, time()
        self._metrics.set_synced(family, now)
        self._show(reconciler, "", now)
        waiting, self._triggers[family] = self._triggers[family], {}
        refused = {name.service for name in reconciler.quarantined}
        for service in waiting.keys() - refused:
            for moment in waiting[service]:
                self._metrics.observe_programming(family, now - moment)

    def requested(self, exchange: Exchange) -> None:
        """See `Observer`."""
        self._metrics.rest.add(exchange)

    def watched(self, kind: Kind, reason: str) -> None:
        """See `Observer`."""
        self._metrics.set_watch(kind.value, up=not reason)
        self._board.set_watch(kind.value, reason, time())

    def distrusted(self, family: Family) -> None:
        """See `Observer`."""
        self._distrusted.add(family)

    def answered(self, path: str, code: int) -> None:
        """See `Observer`."""
        if path == "/healthz":
            self._metrics.add_healthz(code)
        elif path == "/livez":
            self._metrics.add_livez(code)

    def cleaned_flows(self, family: Family, count: int, seconds: float) -> None:
        """See `Observer`."""
        self._metrics.observe_flow_cleaning(family, count, seconds)

    def kernel(self, family: Family, kernel: Kernel[Any, Any]) -> Kernel[Any, Any]:
        """See `Observer`."""
        observed = self._kernels[family] = self._observed(family, kernel, self._metrics)
        return observed

    async def sync(self, reconciler: Reconciler[Any, Any]) -> SyncReport:
        """See `Observer`."""
        family = reconciler.family
        kernel = self._kernels[family]
        kernel.begin_sync()
        started = monotonic()
        error = "interrupted"
        try:
            report = await reconciler.sync()
            kernel.end_sync()
            self._count_programmed(family, report)
            self._count_repairs(family, report)
            error = ""
        except ApplyError as failure:
            error = str(failure)
            raise
        finally:
            self._metrics.observe_sync(family, monotonic() - started, full=kernel.was_read)
            self._metrics.set_quarantined(family, len(reconciler.quarantined))
            self._show(reconciler, error, time())
        return report

    def _show(self, reconciler: Reconciler[Any, Any], error: str, now: float) -> None:
        family = reconciler.family
        self._board.families[family] = FamilyStatus(
            programmed={kind: self._programmed[family][kind] for kind in _KINDS},
            synced_at=self._board.families[family].synced_at if error else now,
            error=error,
            quarantined={
                f"{name} ({name.protocol.name})": quarantine.error
                for name, quarantine in reconciler.quarantined.items()
            },
        )

    def _count_programmed(self, family: Family, report: SyncReport) -> None:
        counts = self._programmed[family]
        for before, after in report.taken.values():
            if before is not None:
                _add(counts, before, -1)
            if after is not None:
                _add(counts, after, 1)
        self._metrics.set_programmed(family, {kind: counts[kind] for kind in _KINDS})
        for policy in _POLICIES:
            self._metrics.set_no_local_endpoints(family, policy, counts[policy])

    def _count_repairs(self, family: Family, report: SyncReport) -> None:
        # Where plans were taken in the same sync, nobody can tell whose entries were wrong and whose were new.
        if family in self._distrusted and not report.taken:
            self._metrics.add_repaired_entries(family, report.entries_changed)
        self._distrusted.discard(family)


class _ObservedKernel:
    """Passes everything on to a kernel, and counts refusals on the way; keys and values are the mode's own affair."""

    def __init__(self, family: Family, kernel: Kernel[Any, Any], metrics: Metrics) -> None:
        self.was_read = False
        self.sees_every_change = kernel.sees_every_change
        self.plans_per_portion = kernel.plans_per_portion
        self._family = family
        self._kernel = kernel
        self._metrics = metrics

    def begin_sync(self) -> None:
        self.was_read = False

    def end_sync(self) -> None:
        """Be told that a sync succeeded."""

    async def read(self) -> dict[Any, Any]:
        found = await self._kernel.read()
        self.was_read = True
        return found

    async def apply(self, change: Mapping[Any, tuple[Any, Any]]) -> None:
        try:
            await self._kernel.apply(change)
        except ApplyError:
            self._metrics.add_failure(self._family, full=self.was_read)
            raise

    def disturbed(self) -> bool:
        return self._kernel.disturbed()


class _CountedRules(_ObservedKernel):
    """Counts rules too, in iptables mode."""

    def __init__(self, family: Family, kernel: Kernel[Any, Any], metrics: Metrics) -> None:
        super().__init__(family, kernel, metrics)
        self._total: Counter[str] = Counter()
        """Rules that are in force, by table."""
        self._written: Counter[str] = Counter()
        """Rules that this sync wrote, by table."""

    def begin_sync(self) -> None:
        super().begin_sync()
        self._written.clear()

    def end_sync(self) -> None:
        self._metrics.set_rules(self._family, self._total, self._written)

    async def read(self) -> dict[Any, Any]:
        found = await super().read()
        self._total = Counter(dict.fromkeys(TABLES, 0))
        for key, value in found.items():
            self._total[key.table] += _rule_count(key, value)
        return found

    async def apply(self, change: Mapping[Any, tuple[Any, Any]]) -> None:
        await super().apply(change)
        for key, (before, after) in change.items():
            count = _rule_count(key, after)
            self._written[key.table] += count
            self._total[key.table] += count - _rule_count(key, before)


class _CountedSweeps(_ObservedKernel):
    """Counts what could not be deleted later, in nftables mode; the agent looks twice a second, and so do we."""

    def __init__(self, family: Family, kernel: Kernel[Any, Any], metrics: Metrics) -> None:
        super().__init__(family, kernel, metrics)
        self._failed = 0

    def disturbed(self) -> bool:
        failed = getattr(self._kernel, "failed_sweeps", 0)
        for _ in range(self._failed, failed):
            self._metrics.add_cleanup_failure(self._family)
        self._failed = failed
        return super().disturbed()


_OBSERVED = {ProxyMode.IPTABLES: _CountedRules, ProxyMode.NFTABLES: _CountedSweeps}


def _rule_count(key: ChainKey | HookKey, value: str | None) -> int:
    if value is None:
        return 0
    return 1 if isinstance(key, HookKey) else value.count("\n")


def _add(counts: dict[str, int], plan: ServicePlan, sign: int) -> None:
    """Add what a port is made of, and under which policies it is dropped here and served elsewhere; or take it away.

    In the first sync this runs once for each port of the cluster, hence no loop and no object.
    """
    counts["service_port"] += sign
    if plan.cluster_ip is not None:
        counts["cluster_ip"] += sign
    if plan.externally_accessible:
        counts["external_ip"] += sign * len(plan.external_ips)
        counts["load_balancer_ip"] += sign * len(plan.load_balancer_ips)
        counts["node_port"] += sign * (plan.node_port > 0)
    if plan.local_endpoints:
        counts["endpoint"] += sign * len({*plan.cluster_endpoints, *plan.local_endpoints})
    else:
        counts["endpoint"] += sign * len(plan.cluster_endpoints)
    if plan.internal_local and plan.internal_verdict is Verdict.DROP:
        counts["internal"] += sign
    if plan.external_local and plan.external_verdict is Verdict.DROP:
        counts["external"] += sign
