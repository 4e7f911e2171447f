"""The one registry of metric names, and the methods that take their values.

Names, labels, buckets and meanings are those of kube-proxy 1.37 (``pkg/proxy/metrics/metrics.go``): dashboards and
alerts know them. What kube-proxy does not have begins with ``pyproxy_``. Methods may be called from any thread.
``docs/metrics.md`` says what differs, and why.
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
    disable_created_metrics,
)

from pyproxy import __version__
from pyproxy.model.address import Family
from pyproxy.serve.mode_metrics import ModeMetrics
from pyproxy.serve.proc_metrics import ProcCollector
from pyproxy.serve.rest_metrics import RestMetrics

_NAMESPACE = "kubeproxy"
_FAMILY = "ip_family"
KUBERNETES_MINOR = 37
"""The kube-proxy that this is a replacement of is 1.37: what compares versions of a cluster's parts compares with that."""
_SYNC_SECONDS = [0.001 * 2**exponent for exponent in range(15)]
"""Upper bounds of the buckets of a sync: 1 ms to 16.4 s."""
_PROGRAMMING_SECONDS = [0, 0.25, 0.5, *range(1, 60), *range(60, 120, 5), *range(120, 301, 30)]
"""Upper bounds of the buckets of network programming; the 0 is an accident of kube-proxy's, and dashboards know it."""


class Metrics:
    """The metrics of one agent.

    Args:
        mode: the proxy mode, as ``/proxyMode`` returns it.
        names: the metrics that only some modes have.
        families: families of the agent. Their counters start at 0, so that the first count is visible as an increase.
    """

    def __init__(self, mode: str, names: ModeMetrics, families: Iterable[Family]) -> None:
        # A time-stamp for each counter and histogram: twice the lines, and kube-proxy has none.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # it has no annotations
        self._mode = mode
        self._names = names
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self.registry.register(ProcCollector())
        self.rest = RestMetrics(self.registry)
        self._add_build_info()
        self._add_syncs()
        self._add_changes()
        self._add_health()
        self._add_flows()
        self._add_failures()
        if names.rules:
            self._add_rules(names.rules)
        self._add_localhost()
        self._add_own()
        counters = (*self._failures, self._cleanup_failures, self._deleted_flows, self._repaired_entries)
        for family in families:
            for counter in counters:
                if counter is not None:
                    counter.labels(family)

    def _add_build_info(self) -> None:
        values = {
            "build_date": "",
            "compiler": sys.implementation.name,
            "git_commit": "",
            "git_tree_state": "",
            "git_version": f"v1.{KUBERNETES_MINOR}.0+pyproxy-{__version__}",
            "go_version": f"python{platform.python_version()}",
            "major": "1",
            "minor": str(KUBERNETES_MINOR),
            "platform": f"{sys.platform}/{platform.machine()}",
        }
        text = (
            "Always 1; the version is that of the kube-proxy that pyproxy stands for, with its own behind the plus sign"
        )
        Gauge("kubernetes_build_info", text, values, registry=self.registry).labels(**values).set(1)

    def _add_syncs(self) -> None:
        self._syncs = self._histogram("sync_proxy_rules_duration_seconds", "Duration of a sync")
        if self._names.has_full_syncs:
            self._full_syncs = self._histogram(
                "sync_full_proxy_rules_duration_seconds", "Duration of a sync that compared everything with the kernel"
            )
            self._partial_syncs = self._histogram(
                "sync_partial_proxy_rules_duration_seconds", "Duration of a sync that looked at changes only"
            )
        self._programming = self._histogram(
            "network_programming_duration_seconds",
            "Time from a change of a Service or pod until the kernel has it; by two clocks, the control plane's and ours",
            _PROGRAMMING_SECONDS,
        )
        self._last_sync = self._gauge("sync_proxy_rules_last_timestamp_seconds", "Time of the last successful sync")
        self._last_queued = self._gauge(
            "sync_proxy_rules_last_queued_timestamp_seconds", "Time at which a sync was last asked for"
        )

    def _add_changes(self) -> None:
        self._endpoint_changes = self._counter(
            "sync_proxy_rules_endpoint_changes", "EndpointSlices that came, changed or went", labels=()
        )
        self._service_changes = self._counter(
            "sync_proxy_rules_service_changes", "Services that came, changed or went", labels=()
        )
        self._pending_endpoint_changes = self._gauge(
            "sync_proxy_rules_endpoint_changes_pending", "EndpointSlices that no sync has taken up yet", labels=()
        )
        self._pending_service_changes = self._gauge(
            "sync_proxy_rules_service_changes_pending", "Services that no sync has taken up yet", labels=()
        )
        self._no_local_endpoints = self._gauge(
            "sync_proxy_rules_no_local_endpoints_total",
            "Service ports of policy Local with endpoints on other nodes but none on this one",
            labels=(_FAMILY, "traffic_policy"),
        )

    def _add_health(self) -> None:
        self._healthz = self._counter("proxy_healthz", "Answers of /healthz by HTTP status", labels=("code",))
        self._livez = self._counter("proxy_livez", "Answers of /livez by HTTP status", labels=("code",))

    def _add_flows(self) -> None:
        self._flow_cleanings = self._histogram(
            "conntrack_reconciler_sync_duration_seconds", "Duration of a walk through connection tracking"
        )
        self._deleted_flows = self._counter(
            "conntrack_reconciler_deleted_entries", "Connection tracking entries deleted because they had become stale"
        )

    def _add_failures(self) -> None:
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

    def _add_rules(self, prefix: str) -> None:
        labels = (_FAMILY, "table")
        self._rules = self._gauge(f"{prefix}_total", "Rules in the kernel", labels=labels)
        self._written_rules = self._gauge(f"{prefix}_last", "Rules written by the last sync", labels=labels)

    def _add_localhost(self) -> None:
        self._localhost_listeners = self._gauge(
            "nftables_localhost_nodeport_listeners", "Localhost node ports that a relay serves"
        )
        self._localhost_failures = self._counter(
            "nftables_localhost_nodeport_listener_creation_failures",
            "Failed tries to listen on a localhost node port",
        )

    def _add_own(self) -> None:
        self._quarantined = self._own_gauge(
            "quarantined_service_ports", "Service ports that the kernel refused, and that keep their last good rules"
        )
        self._programmed = self._own_gauge(
            "programmed",
            "What the kernel has of Services, by kind: Service ports, addresses, endpoints",
            (_FAMILY, "kind"),
        )
        self._watches = self._own_gauge(
            "watch_up", "Whether the API server's objects of a kind arrive: 1, or 0 while they are cut off", ("kind",)
        )
        self._repaired_entries = Counter(
            "pyproxy_repaired_entries",
            "Chains, hooks and other entries put right after somebody else had changed them",
            (_FAMILY,),
            registry=self.registry,
        )
        info = {"version": __version__, "mode": self._mode}
        self._own_gauge("build_info", "Always 1; what this is", tuple(info)).labels(**info).set(1)

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
        """Count Services that a source told of."""
        self._service_changes.inc(count)
        self._pending_service_changes.inc(count)

    def add_endpoint_changes(self, count: int) -> None:
        """Count EndpointSlices that a source told of."""
        self._endpoint_changes.inc(count)
        self._pending_endpoint_changes.inc(count)

    def set_nothing_pending(self) -> None:
        """Note that a sync takes up all that sources told of."""
        self._pending_endpoint_changes.set(0)
        self._pending_service_changes.set(0)

    def set_queued(self, family: Family, at: float) -> None:
        """Note when a sync was asked for, in seconds since 1970."""
        self._last_queued.labels(family).set(at)

    def observe_sync(self, family: Family, seconds: float, *, full: bool) -> None:
        """Note the duration of a sync, whether it succeeded or not.

        Args:
            family: the family that was synced.
            seconds: how long it took.
            full: everything was compared with the kernel, not only what changed.
        """
        self._syncs.labels(family).observe(seconds)
        if self._names.has_full_syncs:
            (self._full_syncs if full else self._partial_syncs).labels(family).observe(seconds)

    def set_synced(self, family: Family, at: float) -> None:
        """Note when a sync succeeded, in seconds since 1970."""
        self._last_sync.labels(family).set(at)

    def observe_programming(self, family: Family, seconds: float) -> None:
        """Note how long a change took from where it was made into the kernel; clocks may make it less than nothing."""
        self._programming.labels(family).observe(seconds)

    def add_failure(self, family: Family, *, full: bool) -> None:
        """Count a change that the kernel did not take, in a sync that compared everything or only what changed."""
        for counter in self._failures[:1] if full else self._failures:
            counter.labels(family).inc()

    def add_cleanup_failure(self, family: Family) -> None:
        """Count a removal of what is out of use that the kernel did not take; in nftables mode only."""
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
        """Note how many rules there are, and how many the last sync wrote, by table; in iptables mode only."""
        for table, count in total.items():
            self._rules.labels(family, table).set(count)
            self._written_rules.labels(family, table).set(written.get(table, 0))

    def set_no_local_endpoints(self, family: Family, policy: str, count: int) -> None:
        """Note how many Service ports of a traffic policy, ``internal`` or ``external``, have no endpoint here."""
        self._no_local_endpoints.labels(family, policy).set(count)

    def set_quarantined(self, family: Family, count: int) -> None:
        """Note how many Service ports are in quarantine."""
        self._quarantined.labels(family).set(count)

    def set_programmed(self, family: Family, counts: Mapping[str, int]) -> None:
        """Note how much of each kind the kernel has."""
        for kind, count in counts.items():
            self._programmed.labels(family, kind).set(count)

    def set_watch(self, kind: str, *, up: bool) -> None:
        """Note whether objects of a kind arrive."""
        self._watches.labels(kind).set(up)

    def observe_flow_cleaning(self, family: Family, deleted: int, seconds: float) -> None:
        """Note a walk through connection tracking, and how many entries it deleted."""
        self._flow_cleanings.labels(family).observe(seconds)
        self._deleted_flows.labels(family).inc(deleted)

    def add_repaired_entries(self, family: Family, count: int) -> None:
        """Count entries that had to be put right."""
        self._repaired_entries.labels(family).inc(count)
