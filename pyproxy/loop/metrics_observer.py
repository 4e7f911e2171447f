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
from pyproxy.model.ruleset import TABLES, ChainKey, HookKey
from pyproxy.model.service import Service
from pyproxy.serve.metrics import Metrics

_POLICIES = ("internal", "external")


class MetricsObserver(Observer):
    """Turns what it is told into values of metrics.

    Args:
        metrics: takes the values.
        mode: of the agent; iptables rules are counted in iptables mode only.
        families: of the agent.
    """

    def __init__(self, metrics: Metrics, mode: ProxyMode, families: Collection[Family]) -> None:
        self._metrics = metrics
        self._observed = _CountedRules if mode is ProxyMode.IPTABLES else _ObservedKernel
        self._kernels: dict[Family, _ObservedKernel] = {}
        self._distrusted: set[Family] = set()
        self._no_local_endpoints = {family: Counter[str]() for family in families}

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
        for family in self._no_local_endpoints:
            self._metrics.set_queued(family, time())

    def planned(self) -> None:
        """See `Observer`."""
        self._metrics.set_nothing_pending()

    def distrusted(self, family: Family) -> None:
        """See `Observer`."""
        self._distrusted.add(family)

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
        try:
            report = await reconciler.sync()
        finally:
            self._metrics.observe_sync(family, monotonic() - started, full=kernel.was_read)
            self._metrics.set_quarantined(family, len(reconciler.quarantined))
        self._metrics.set_synced(family, time())
        kernel.end_sync()
        self._count_no_local_endpoints(family, report)
        self._count_repairs(family, report)
        return report

    def _count_no_local_endpoints(self, family: Family, report: SyncReport) -> None:
        counts = self._no_local_endpoints[family]
        for before, after in report.taken.values():
            counts.subtract(_without_local_endpoints(before))
            counts.update(_without_local_endpoints(after))
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
            self._metrics.add_failure(self._family)
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


def _rule_count(key: ChainKey | HookKey, value: str | None) -> int:
    if value is None:
        return 0
    return 1 if isinstance(key, HookKey) else value.count("\n")


def _without_local_endpoints(plan: ServicePlan | None) -> list[str]:
    """Return the traffic policies under which a port is dropped here and served elsewhere."""
    if plan is None:
        return []
    dropped = (
        plan.internal_local and plan.internal_verdict is Verdict.DROP,
        plan.external_local and plan.external_verdict is Verdict.DROP,
    )
    return [policy for policy, is_dropped in zip(_POLICIES, dropped, strict=True) if is_dropped]
