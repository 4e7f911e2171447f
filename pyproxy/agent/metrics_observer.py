"""Turns the work of the agent into metrics. The cost of an observation depends on the change, not on the cluster."""

from collections.abc import Collection, Iterable
from time import time
from typing import Any

from pyproxy.agent.observer import Observer
from pyproxy.agent.reconcile import Reconciler, SyncReport
from pyproxy.agent.status_board import FamilyState, ServiceSource, StatusBoard
from pyproxy.model.address import Family
from pyproxy.model.change import Kind, ObjectChange, Put, Removed, Replaced
from pyproxy.model.endpoint import EndpointSlice
from pyproxy.model.names import NamespacedName
from pyproxy.model.node import Node
from pyproxy.model.request_record import RequestRecord
from pyproxy.model.service import Service
from pyproxy.model.tracker import MOST_TRIGGERS, Triggers
from pyproxy.plan.service_plan import ServicePlan, Verdict
from pyproxy.serve.metrics import Metrics

_POLICIES = ("internal", "external")
_KINDS = ("service_port", "cluster_ip", "external_ip", "load_balancer_ip", "node_port", "endpoint")
"""Kinds of objects in the kernel that are counted; an endpoint counts once for each Service port that uses it."""


class MetricsObserver(Observer):
    """Updates metrics and the status page.

    Args:
        metrics: has the metrics.
        board: has the values of the status page.
        families: families of the agent.
    """

    def __init__(self, metrics: Metrics, board: StatusBoard, families: Collection[Family]) -> None:
        self._metrics = metrics
        self._board = board
        self._programmed = {family: dict.fromkeys((*_KINDS, *_POLICIES), 0) for family in families}
        """Number of objects of each kind in the kernel; by traffic policy, number of ports with endpoints elsewhere only."""
        self._triggers: dict[Family, dict[NamespacedName, list[float]]] = {family: {} for family in families}
        """Times of changes that are not in the kernel yet, in seconds since 1970."""
        for family in families:
            board.families[family] = FamilyState(dict.fromkeys(_KINDS, 0))

    def delivered(self, change: ObjectChange) -> None:
        """See `Observer`."""
        match change:
            case Put(object=Service()) | Removed(kind=Kind.SERVICE):
                self._metrics.add_service_changes(1)
                self._board.heard(Kind.SERVICE.value, time())
            case Put(object=EndpointSlice()) | Removed(kind=Kind.ENDPOINT_SLICE):
                self._metrics.add_endpoint_changes(1)
                self._board.heard(Kind.ENDPOINT_SLICE.value, time())
            case Put(object=Node()):
                self._board.heard(Kind.NODE.value, time())
            case Replaced(kind=Kind.SERVICE, objects=objects):
                self._metrics.add_service_changes(len(objects))
            case Replaced(kind=Kind.ENDPOINT_SLICE, objects=objects):
                self._metrics.add_endpoint_changes(len(objects))

    def serves(self, services: ServiceSource, current_at: float | None) -> None:
        """See `Observer`."""
        self._board.services, self._board.current_at = services, current_at

    def knows_node(self, node: Node) -> None:
        """See `Observer`."""
        self._board.node = node

    def problems_changed(self, appeared: Iterable[str], gone: Iterable[str]) -> None:
        """See `Observer`."""
        self._board.change_problems(appeared, gone)

    def queued(self) -> None:
        """See `Observer`."""
        for family in self._programmed:
            self._metrics.set_queued(family, time())

    def planned(self, triggers: Triggers) -> None:
        """See `Observer`. Changes from before the start of the agent are not measured."""
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

    def requested(self, exchange: RequestRecord) -> None:
        """See `Observer`."""
        self._metrics.rest.add(exchange)

    def watched(self, kind: Kind, reason: str) -> None:
        """See `Observer`."""
        self._metrics.set_watch(kind.value, up=not reason)
        self._board.set_watch(kind.value, reason, time())

    def checked(self, family: Family, seconds: float) -> None:
        """See `Observer`."""
        self._metrics.observe_drift_check(family, seconds)

    def answered(self, path: str, code: int) -> None:
        """See `Observer`."""
        if path == "/healthz":
            self._metrics.add_healthz(code)
        elif path == "/livez":
            self._metrics.add_livez(code)

    def listeners_changed(self, family: Family, change: int) -> None:
        """See `Observer`."""
        self._metrics.add_localhost_listeners(family, change)

    def listening_failed(self, family: Family) -> None:
        """See `Observer`."""
        self._metrics.add_localhost_failure(family)

    def cleaned_flows(self, family: Family, count: int, seconds: float) -> None:
        """See `Observer`."""
        self._metrics.observe_flow_cleaning(family, count, seconds)

    def synced(self, reconciler: Reconciler[Any, Any], report: SyncReport) -> None:
        """See `Observer`."""
        family, counts = reconciler.family, report.counts
        self._metrics.observe_sync(family, report.seconds, full=report.is_full)
        for _ in range(report.failed_transactions):
            self._metrics.add_failure(family, full=report.is_full)
        for _ in range(counts.failed_cleanups):
            self._metrics.add_cleanup_failure(family)
        if report.error is None and counts.rules:
            self._metrics.set_rules(family, counts.rules, counts.rules_written)
        programmed = self._programmed[family]
        for before, after in report.taken.values():
            if before is not None:
                _add(programmed, before, -1)
            if after is not None:
                _add(programmed, after, 1)
        self._metrics.set_programmed(family, {kind: programmed[kind] for kind in _KINDS})
        for policy in _POLICIES:
            self._metrics.set_no_local_endpoints(family, policy, programmed[policy])
        if report.drift is not None:
            self._metrics.add_drift(family, report.drift.counts())
        self._metrics.set_quarantined(family, len(reconciler.quarantined))
        now = time()
        self._board.add_changes(family, report, now, is_first=self._board.families[family].synced_at is None)
        self._show(reconciler, str(report.error or ""), now)

    def _show(self, reconciler: Reconciler[Any, Any], error: str, now: float) -> None:
        family = reconciler.family
        self._board.families[family] = FamilyState(
            programmed={kind: self._programmed[family][kind] for kind in _KINDS},
            synced_at=self._board.families[family].synced_at if error else now,
            error=error,
            quarantined={
                f"{name} ({name.protocol.name})": quarantine.error
                for name, quarantine in reconciler.quarantined.items()
            },
        )


def _add(counts: dict[str, int], plan: ServicePlan, sign: int) -> None:
    """Add the objects of a port to the counts, or subtract them, and count whether its traffic is dropped on this node.

    In the first sync this runs once for each port of the cluster, so it has no loop and creates few objects.
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
