"""The metrics of the agent, and the methods that set their values.

Names, labels, buckets and meanings are those of kube-proxy 1.37 (``pkg/proxy/metrics/metrics.go``), which dashboards and
alerts use. Metrics that kube-proxy does not have begin with ``pyproxy_``. Methods may be called in any thread.
``docs/metrics.md`` lists the differences and the reasons.
"""

import platform
import sys
from collections.abc import Iterable, Mapping, Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    ProcessCollector,
    Summary,
    disable_created_metrics,
)

from pyproxy import __version__
from pyproxy.model.address import Family
from pyproxy.serve.build_info import build_info
from pyproxy.serve.mode_metrics import ModeMetrics
from pyproxy.serve.proc_metrics import ProcCollector
from pyproxy.serve.rest_metrics import RestMetrics

_NAMESPACE = "kubeproxy"
_FAMILY = "ip_family"
KUBERNETES_MINOR = 37
"""pyproxy replaces kube-proxy 1.37. Tools that compare the versions of a cluster's components read this number."""
_SYNC_SECONDS = [0.001 * 2**exponent for exponent in range(15)]
"""Upper bounds of the buckets of a sync: 1 ms to 16.4 s."""
DRIFT_KINDS = ("missing", "changed", "unexpected")
"""Kinds of difference between an entry in the kernel and the one that pyproxy wrote."""
_PROGRAMMING_SECONDS = [0, 0.25, 0.5, *range(1, 60), *range(60, 120, 5), *range(120, 301, 30)]
"""Upper bounds of the buckets of network programming. The 0 is a mistake in kube-proxy, kept because dashboards use it."""


class Metrics:
    """The metrics of one agent.

    Args:
        mode: the proxy mode, as ``/proxyMode`` returns it.
        names: the metrics that only some modes have.
        families: families of the agent. Their counters start at 0, so that the first count is visible as an increase.
    """

    def __init__(self, mode: str, names: ModeMetrics, families: Iterable[Family]) -> None:
        # A `_created` time-stamp for each counter and histogram would double the lines; kube-proxy has none.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # it has no annotations
        self._mode = mode
        self._names = names
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self.registry.register(ProcCollector())
        self.rest = RestMetrics(self.registry)
        build = build_labels()
        text = "Always 1; the version is that of the kube-proxy that pyproxy replaces, then a plus sign and its own version"
        Gauge("kubernetes_build_info", text, build, registry=self.registry).labels(**build).set(1)
        self._add_syncs()
        self._add_components()
        self._add_own()
        counters = (*self._failures, self._cleanup_failures, self._deleted_flows, self._repaired_entries)
        # `rate()` of Prometheus needs two samples, so it misses the first count of a series that did not exist before.
        for family in families:
            for counter in counters:
                if counter is not None:
                    counter.labels(family)
            for kind in DRIFT_KINDS:
                self._drift.labels(family, kind)

    def _add_syncs(self) -> None:
        self._syncs = self._histogram("sync_proxy_rules_duration_seconds", "Duration of a sync")
        if self._names.has_full_syncs:
            self._full_syncs = self._histogram(
                "sync_full_proxy_rules_duration_seconds",
                "Duration of a full sync, which compares all entries with the kernel",
            )
            self._partial_syncs = self._histogram(
                "sync_partial_proxy_rules_duration_seconds", "Duration of a partial sync, which writes only changes"
            )
        self._programming = self._histogram(
            "network_programming_duration_seconds",
            "Time from a change of a Service or pod until it is programmed, by the clocks of control plane and node",
            _PROGRAMMING_SECONDS,
        )
        self._last_sync = self._gauge("sync_proxy_rules_last_timestamp_seconds", "Time of the last successful sync")
        self._last_queued = self._gauge(
            "sync_proxy_rules_last_queued_timestamp_seconds", "Time at which a sync was last requested"
        )
        # An object is applied once for both families, so these metrics have no family label.
        self._endpoint_changes = self._counter(
            "sync_proxy_rules_endpoint_changes", "EndpointSlices that were added, changed or removed", labels=()
        )
        self._service_changes = self._counter(
            "sync_proxy_rules_service_changes", "Services that were added, changed or removed", labels=()
        )
        self._pending_endpoint_changes = self._gauge(
            "sync_proxy_rules_endpoint_changes_pending",
            "Changes of EndpointSlices that no sync has processed yet",
            labels=(),
        )
        self._pending_service_changes = self._gauge(
            "sync_proxy_rules_service_changes_pending", "Changes of Services that no sync has processed yet", labels=()
        )
        self._no_local_endpoints = self._gauge(
            "sync_proxy_rules_no_local_endpoints_total",
            "Service ports with traffic policy Local and endpoints on other nodes, but none on this node",
            labels=(_FAMILY, "traffic_policy"),
        )

    def _add_components(self) -> None:
        self._healthz = self._counter("proxy_healthz", "Answers of /healthz by HTTP status", labels=("code",))
        self._livez = self._counter("proxy_livez", "Answers of /livez by HTTP status", labels=("code",))
        self._flow_cleanings = self._histogram(
            "conntrack_reconciler_sync_duration_seconds", "Duration of a search for stale flows in conntrack"
        )
        self._deleted_flows = self._counter(
            "conntrack_reconciler_deleted_entries", "Stale conntrack entries that were deleted"
        )
        self._localhost_listeners = self._gauge(
            "nftables_localhost_nodeport_listeners", "Localhost node ports that a relay serves"
        )
        self._localhost_failures = self._counter(
            "nftables_localhost_nodeport_listener_creation_failures",
            "Failed tries to listen on a localhost node port",
        )
        names = self._names
        self._failures = [self._counter(names.failures, "Changes that the kernel rejected")]
        if names.partial_failures:
            self._failures.append(
                self._counter(names.partial_failures, "Changes of partial syncs that the kernel rejected")
            )
        self._cleanup_failures = None
        if names.cleanup_failures:
            self._cleanup_failures = self._counter(
                names.cleanup_failures, "Removals of unused entries that the kernel rejected"
            )
        if names.rules:
            labels = (_FAMILY, "table")
            self._rules = self._gauge(f"{names.rules}_total", "Rules in the kernel", labels)
            self._written_rules = self._gauge(f"{names.rules}_last", "Rules written by the last sync", labels)

    def _add_own(self) -> None:
        self._quarantined = self._own_gauge(
            "quarantined_service_ports", "Service ports that the kernel rejected; they keep their last good rules"
        )
        self._programmed = self._own_gauge(
            "programmed",
            "Number of objects in the kernel, by kind: Service ports, addresses, endpoints",
            (_FAMILY, "kind"),
        )
        self._watches = self._own_gauge(
            "watch_up",
            "1 if changes of this kind of object arrive, 0 if the API server is unavailable for it",
            ("kind",),
        )
        self._repaired_entries = Counter(
            "pyproxy_repaired_entries",
            "Chains, hooks and other entries that were repaired after an external change",
            (_FAMILY,),
            registry=self.registry,
        )
        self._drift = Counter(
            "pyproxy_drift_entries",
            "Chains, hooks and other entries that differed from what pyproxy wrote, by kind of difference",
            (_FAMILY, "kind"),
            registry=self.registry,
        )
        self._drift_checks = Summary(
            "pyproxy_drift_check_duration_seconds",
            "Duration of a comparison of all entries with the kernel outside of a sync",
            (_FAMILY,),
            registry=self.registry,
        )
        info = {"version": __version__, "mode": self._mode}
        self._own_gauge("build_info", "Always 1; version and proxy mode of pyproxy", tuple(info)).labels(**info).set(1)

    def _own_gauge(self, name: str, text: str, labels: tuple[str, ...] = (_FAMILY,)) -> Gauge:
        return Gauge(name, text, labels, namespace="pyproxy", registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float] = _SYNC_SECONDS) -> Histogram:
        return Histogram(name, text, (_FAMILY,), namespace=_NAMESPACE, buckets=buckets, registry=self.registry)

    def _gauge(self, name: str, text: str, labels: tuple[str, ...] = (_FAMILY,)) -> Gauge:
        return Gauge(name, text, labels, namespace=_NAMESPACE, registry=self.registry)

    def _counter(self, name: str, text: str, labels: tuple[str, ...] = (_FAMILY,)) -> Counter:
        """Add a counter; its name gets ``_total`` at the end."""
        return Counter(name, text, labels, namespace=_NAMESPACE, registry=self.registry)

    def add_service_changes(self, count: int) -> None:
        """Count changes of Services."""
        self._service_changes.inc(count)
        self._pending_service_changes.inc(count)

    def add_endpoint_changes(self, count: int) -> None:
        """Count changes of EndpointSlices."""
        self._endpoint_changes.inc(count)
        self._pending_endpoint_changes.inc(count)

    def set_nothing_pending(self) -> None:
        """Record that a sync processes all changes."""
        self._pending_endpoint_changes.set(0)
        self._pending_service_changes.set(0)

    def set_queued(self, family: Family, at: float) -> None:
        """Record when a sync was requested, in seconds since 1970."""
        self._last_queued.labels(family).set(at)

    def observe_sync(self, family: Family, seconds: float, *, full: bool) -> None:
        """Record the duration of a sync, successful or not.

        Args:
            family: family of the sync.
            seconds: duration.
            full: all entries were compared with the kernel, not only changed ones.
        """
        self._syncs.labels(family).observe(seconds)
        if self._names.has_full_syncs:
            (self._full_syncs if full else self._partial_syncs).labels(family).observe(seconds)

    def set_synced(self, family: Family, at: float) -> None:
        """Record when a sync succeeded, in seconds since 1970."""
        self._last_sync.labels(family).set(at)

    def observe_programming(self, family: Family, seconds: float) -> None:
        """Record the time from a change to its programming; clocks that differ can make it negative."""
        self._programming.labels(family).observe(seconds)

    def add_failure(self, family: Family, *, full: bool) -> None:
        """Count a change that the kernel rejected, in a full or a partial sync."""
        for counter in self._failures[:1] if full else self._failures:
            counter.labels(family).inc()

    def add_cleanup_failure(self, family: Family) -> None:
        """Count a rejected removal of unused entries, in modes that have this metric."""
        if self._cleanup_failures is not None:
            self._cleanup_failures.labels(family).inc()

    def add_localhost_listeners(self, family: Family, change: int) -> None:
        """Add to the number of localhost node ports that are served."""
        self._localhost_listeners.labels(family).inc(change)

    def add_localhost_failure(self, family: Family) -> None:
        """Count a localhost node port that could not be listened on."""
        self._localhost_failures.labels(family).inc()

    def add_healthz(self, code: int) -> None:
        """Count an answer of /healthz by its HTTP status."""
        self._healthz.labels(str(code)).inc()

    def add_livez(self, code: int) -> None:
        """Count an answer of /livez by its HTTP status."""
        self._livez.labels(str(code)).inc()

    def set_rules(self, family: Family, total: Mapping[str, int], written: Mapping[str, int]) -> None:
        """Record the number of rules, and of rules written by the last sync, by table, in modes that have this metric."""
        for table, count in total.items():
            self._rules.labels(family, table).set(count)
            self._written_rules.labels(family, table).set(written.get(table, 0))

    def set_no_local_endpoints(self, family: Family, policy: str, count: int) -> None:
        """Record the number of Service ports with endpoints on other nodes only, for policy ``internal`` or ``external``."""
        self._no_local_endpoints.labels(family, policy).set(count)

    def set_quarantined(self, family: Family, count: int) -> None:
        """Record the number of quarantined Service ports."""
        self._quarantined.labels(family).set(count)

    def set_programmed(self, family: Family, counts: Mapping[str, int]) -> None:
        """Record the number of objects in the kernel, by kind."""
        for kind, count in counts.items():
            self._programmed.labels(family, kind).set(count)

    def set_watch(self, kind: str, *, up: bool) -> None:
        """Record whether objects of a kind arrive."""
        self._watches.labels(kind).set(up)

    def observe_flow_cleaning(self, family: Family, deleted: int, seconds: float) -> None:
        """Record a search in conntrack, and the number of entries that it deleted."""
        self._flow_cleanings.labels(family).observe(seconds)
        self._deleted_flows.labels(family).inc(deleted)

    def add_drift(self, family: Family, counts: Mapping[str, int]) -> None:
        """Count entries that another program changed, by kind; all of them were repaired."""
        for kind, count in counts.items():
            self._drift.labels(family, kind).inc(count)
            self._repaired_entries.labels(family).inc(count)

    def observe_drift_check(self, family: Family, seconds: float) -> None:
        """Record the duration of a comparison outside of a sync."""
        self._drift_checks.labels(family).observe(seconds)


def build_labels() -> dict[str, str]:
    """Return the labels of ``kubernetes_build_info``."""
    installed = build_info()
    return {
        "build_date": installed.build_date,
        "compiler": sys.implementation.name,
        "git_commit": installed.git_commit,
        "git_tree_state": "",
        "git_version": f"v1.{KUBERNETES_MINOR}.0+pyproxy-{__version__}",
        "go_version": f"python{platform.python_version()}",
        "major": "1",
        "minor": str(KUBERNETES_MINOR),
        "platform": f"{sys.platform}/{platform.machine()}",
    }
