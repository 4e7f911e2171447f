"""The metrics that an observer sets; their values are read from the registry that is served."""

import asyncio
from collections.abc import Mapping

from pyproxy.agent.metrics_observer import MetricsObserver
from pyproxy.agent.reconcile import Quarantine, Reconciler
from pyproxy.agent.status_board import StatusBoard
from pyproxy.backends.interface import KernelCounts
from pyproxy.backends.iptables.program import IptablesProgram
from pyproxy.backends.iptables.ruleset import RulesetKey
from pyproxy.backends.iptables.static_rules import IptablesSettings
from pyproxy.backends.registry import backend_class
from pyproxy.config.config import ProxyMode
from pyproxy.model.address import Family
from pyproxy.model.change import Kind
from pyproxy.model.names import NamespacedName, Protocol, ServicePortName
from pyproxy.model.tracker import MOST_TRIGGERS
from pyproxy.serve.metrics import Metrics

STARTED = 1_000_000.0
WEB, REFUSED = NamespacedName("default", "web"), NamespacedName("default", "refused")
IPV4 = {"ip_family": "IPv4"}


class Sweeping:
    """A kernel that sometimes cannot delete unused entries."""

    detects_all_changes = True
    change_descriptor: int | None = None
    plans_per_portion: int | None = None
    failed_cleanups = 0

    async def read(self) -> dict[RulesetKey, str]:
        """Find nothing."""
        return {}

    async def peek(self) -> dict[RulesetKey, str]:
        """Find nothing."""
        return {}

    def leftovers(self) -> tuple[RulesetKey, ...]:
        """Leave nothing."""
        return ()

    async def apply(self, _: Mapping[RulesetKey, tuple[str | None, str | None]]) -> None:
        """Take everything."""

    def take_counts(self) -> KernelCounts:
        """Return the failures since the last call."""
        failed, self.failed_cleanups = self.failed_cleanups, 0
        return KernelCounts(failed_cleanups=failed)

    def changed_externally(self) -> bool:
        """Report no external change."""
        return False

    async def examine(self) -> bool:
        """Report no external change."""
        return False


class Observed:
    """An observer with the metrics that it sets."""

    def __init__(self, mode: ProxyMode) -> None:
        self.metrics = Metrics(mode.value, backend_class(mode).metrics, Family)
        self.board = StatusBoard(mode.value, "node-1", STARTED)
        self.observer = MetricsObserver(self.metrics, self.board, tuple(Family))

    def value(self, name: str, **labels: str) -> float | None:
        """Return the value of a metric."""
        return self.metrics.registry.get_sample_value(name, labels)


def test_failed_sweeps_are_counted() -> None:
    """What could not be deleted counts once, in its family."""
    observed, kernel = Observed(ProxyMode.NFTABLES), Sweeping()
    reconciler = Reconciler(Family.IPV4, IptablesProgram(IptablesSettings(family=Family.IPV4)), kernel)
    kernel.failed_cleanups = 2
    for _ in range(3):
        observed.observer.synced(reconciler, asyncio.run(reconciler.sync()))

    name = "kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total"
    assert (2, 0) == (observed.value(name, ip_family="IPv4"), observed.value(name, ip_family="IPv6"))


def test_listeners_of_the_relay_are_counted() -> None:
    """The gauge follows the sockets that are open in each family; a failed attempt to listen counts in its family."""
    observed = Observed(ProxyMode.IPTABLES)
    for family, change in ((Family.IPV4, 1), (Family.IPV6, 1), (Family.IPV6, 1), (Family.IPV6, -1), (Family.IPV4, -1)):
        observed.observer.listeners_changed(family, change)
    observed.observer.listening_failed(Family.IPV6)
    prefix = "kubeproxy_nftables_localhost_nodeport_listener"

    assert [0, 1] == [observed.value(f"{prefix}s", ip_family=str(family)) for family in Family]
    assert [None, 1] == [
        observed.value(f"{prefix}_creation_failures_total", ip_family=str(family)) for family in Family
    ]


def test_what_is_measured_of_changes() -> None:
    """A change is measured when it is in the kernel: none from before the start, and none of a Service in quarantine."""
    observed = Observed(ProxyMode.IPTABLES)
    program = IptablesProgram(IptablesSettings(family=Family.IPV4))
    reconciler = Reconciler(Family.IPV4, program, Sweeping())
    reconciler.quarantined[ServicePortName(REFUSED, "", Protocol.TCP)] = Quarantine(None, "no")
    name = "kubeproxy_network_programming_duration_seconds_count"

    observed.observer.planned({(Family.IPV4, WEB): [STARTED - 1, STARTED + 1], (Family.IPV6, WEB): [STARTED + 1]})
    observed.observer.planned({(Family.IPV4, WEB): [STARTED + 2], (Family.IPV4, REFUSED): [STARTED + 1]})
    assert observed.value(name, **IPV4) is None

    for _ in range(2):
        observed.observer.settled(reconciler)
        assert (2, None) == (observed.value(name, ip_family="IPv4"), observed.value(name, ip_family="IPv6"))

    shown = observed.board.families[Family.IPV4]
    assert {"default/refused (TCP)": "no"} == shown.quarantined
    assert (observed.value("kubeproxy_sync_proxy_rules_last_timestamp_seconds", **IPV4), "") == (
        shown.synced_at,
        shown.error,
    )


def test_changes_that_are_never_settled() -> None:
    """Of changes that the kernel never takes only so many are kept, however long that goes on."""
    observed = Observed(ProxyMode.IPTABLES)
    program = IptablesProgram(IptablesSettings(family=Family.IPV4))
    reconciler = Reconciler(Family.IPV4, program, Sweeping())
    for second in range(3 * MOST_TRIGGERS):
        observed.observer.planned({(Family.IPV4, WEB): [STARTED + 1 + second]})

    observed.observer.settled(reconciler)

    assert MOST_TRIGGERS == observed.value("kubeproxy_network_programming_duration_seconds_count", **IPV4)


def test_pending_work() -> None:
    """Pending work sets the time in both families; before it there is no value."""
    observed = Observed(ProxyMode.IPTABLES)
    name = "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds"
    assert observed.value(name, **IPV4) is None

    observed.observer.queued()

    assert all((observed.value(name, ip_family=family) or 0) > STARTED for family in ("IPv4", "IPv6"))


def test_watches_are_told() -> None:
    """Why a kind does not arrive is on the page for people, and that it does not is a metric."""
    observed = Observed(ProxyMode.IPTABLES)

    observed.observer.watched(Kind.SERVICE, "refused")
    observed.observer.watched(Kind.NODE, "")

    assert (0, 1) == tuple(observed.value("pyproxy_watch_up", kind=kind) for kind in ("Service", "Node"))
    assert {"Service": "refused", "Node": ""} == {kind: watch.reason for kind, watch in observed.board.watches.items()}
