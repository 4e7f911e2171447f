"""The one registry of metric names, and the methods that take their values.

Names, labels, buckets and meanings are those of kube-proxy 1.36 (``pkg/proxy/metrics/metrics.go``): dashboards and
alerts know them. What kube-proxy does not have begins with ``pyproxy_``. Methods may be called from any thread.
"""

from collections.abc import Iterable, Mapping
from wsgiref.types import WSGIApplication

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    make_wsgi_app,
)

from pyproxy.flags import ListenAddress
from pyproxy.model.address import Family
from pyproxy.serve.exporter import Exporter, application

_NAMESPACE = "kubeproxy"
_FAMILY = "ip_family"
_SYNC_SECONDS = [0.001 * 2**exponent for exponent in range(15)]
"""Upper bounds of the buckets of a sync: 1 ms to 16.4 s."""
_FAILURES = {
    "iptables": "sync_proxy_rules_iptables_restore_failures",
    "ipvs": "sync_proxy_rules_iptables_restore_failures",
    "nftables": "sync_proxy_rules_nftables_sync_failures",
}
"""By mode, how kube-proxy calls the count of refusals."""


class Metrics:
    """The metrics of one agent.

    Args:
        mode: the proxy mode, as ``/proxyMode`` gives it.
        families: the agent's; their counters are there from the start, so that the first count is seen as an increase.
    """

    def __init__(self, mode: str, families: Iterable[Family]) -> None:
        # A time-stamp for each counter and histogram: twice the lines, and kube-proxy has none.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # it has no annotations
        self._mode = mode
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self._add_syncs()
        self._add_changes()
        self._add_flows()
        self._failures = self._counter(_FAILURES[mode], "Changes that the kernel did not take")
        if mode == "iptables":
            self._add_rules()
        self._add_own()
        for family in families:
            for counter in (self._failures, self._deleted_flows, self._repaired_entries):
                counter.labels(family)

    def _add_syncs(self) -> None:
        self._syncs = self._histogram("sync_proxy_rules_duration_seconds", "Duration of a sync")
        self._full_syncs = self._histogram(
            "sync_full_proxy_rules_duration_seconds", "Duration of a sync that compared everything with the kernel"
        )
        self._partial_syncs = self._histogram(
            "sync_partial_proxy_rules_duration_seconds", "Duration of a sync that looked at changes only"
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

    def _add_flows(self) -> None:
        self._flow_cleanings = self._histogram(
            "conntrack_reconciler_sync_duration_seconds", "Duration of a walk through connection tracking"
        )
        self._deleted_flows = self._counter(
            "conntrack_reconciler_deleted_entries", "Connection tracking entries deleted because they had become stale"
        )

    def _add_rules(self) -> None:
        labels = (_FAMILY, "table")
        self._rules = self._gauge("sync_proxy_rules_iptables_total", "iptables rules in force", labels=labels)
        self._written_rules = self._gauge(
            "sync_proxy_rules_iptables_last", "iptables rules written by the last sync", labels=labels
        )

    def _add_own(self) -> None:
        self._quarantined = Gauge(
            "pyproxy_quarantined_service_ports",
            "Service ports that the kernel refused, and that keep their last good rules",
            (_FAMILY,),
            registry=self.registry,
        )
        self._repaired_entries = Counter(
            "pyproxy_repaired_entries",
            "Chains, hooks and other entries put right after somebody else had changed them",
            (_FAMILY,),
            registry=self.registry,
        )

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(name, text, (_FAMILY,), namespace=_NAMESPACE, buckets=_SYNC_SECONDS, registry=self.registry)

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
        (self._full_syncs if full else self._partial_syncs).labels(family).observe(seconds)

    def set_synced(self, family: Family, at: float) -> None:
        """Note when a sync succeeded, in seconds since 1970."""
        self._last_sync.labels(family).set(at)

    def add_failure(self, family: Family) -> None:
        """Count a change that the kernel did not take."""
        self._failures.labels(family).inc()

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

    def observe_flow_cleaning(self, family: Family, deleted: int, seconds: float) -> None:
        """Note a walk through connection tracking, and how many entries it deleted."""
        self._flow_cleanings.labels(family).observe(seconds)
        self._deleted_flows.labels(family).inc(deleted)

    def add_repaired_entries(self, family: Family, count: int) -> None:
        """Count entries that had to be put right."""
        self._repaired_entries.labels(family).inc(count)

    def serve(self, address: ListenAddress) -> Exporter:
        """Start to answer HTTP on an address, in a thread; see `Exporter`."""
        exporter = Exporter(address, application(self._mode, self.wsgi_app()))
        exporter.start()
        return exporter

    def wsgi_app(self) -> WSGIApplication:
        """Return what answers a request for the metrics."""
        app: WSGIApplication = make_wsgi_app(self.registry)
        return app
