"""Budgets of pyproxy: limits of its own values, and of their ratio to kube-proxy's in the same benchmark."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from .results import METRICS, Metric, Results, growth, ratio, summarize

Verdict: TypeAlias = Literal["met", "missed", "not measured"]
_METRICS = {metric.title: metric for metric in METRICS}


@dataclass(frozen=True, slots=True)
class Budget:
    """A limit of one metric in one case."""

    mode: str
    shape: str
    title: str
    """Of the metric."""
    most: float | None = None
    """In the unit of the title."""
    ratio: float | None = None

    @property
    def metric(self) -> Metric:
        """The metric."""
        return _METRICS[self.title]


@dataclass(frozen=True, slots=True)
class Growth:
    """A limit of how much slower a new connection is with many Services than with few."""

    mode: str
    shape: str
    most: float


@dataclass(frozen=True, slots=True)
class Check:
    """A budget, and what the benchmark showed."""

    mode: str
    shape: str
    title: str
    limit: str
    measured: str
    verdict: Verdict


START, START_BYTES, START_API = (
    METRICS[0].title,
    "received from the API server for a start, MB",
    "CPU time of the API server for a start, s",
)
CHANGE, CHANGE_99 = METRICS[2].title, METRICS[4].title
CHURN_99 = "change during 100 changes/s, p99, ms"
CPU, RSS, IDLE = "CPU time per change, ms", "resident memory after the start, MB", "idle CPU, % of one CPU"
CHANGE_BYTES, CHANGE_API = (
    "received from the API server per change, kB",
    "CPU time of the API server per change and agent, of ten agents, ms",
)

BUDGETS = (
    Budget("nftables", "10000x3", START, 1.1, 1 / 20),
    Budget("nftables", "1000x3", START, ratio=1),
    Budget("nftables", "5000x50", START, ratio=1 / 5),
    Budget("nftables", "10000x3", CHANGE, 6, 1 / 60),
    Budget("nftables", "10000x3", CHANGE_99, 12),
    Budget("nftables", "10000x3", CHURN_99, 12),
    Budget("nftables", "10000x3", CPU, 1, 1 / 200),
    Budget("nftables", "10000x3", RSS, 75, 0.45),
    Budget("nftables", "5000x50", RSS, 180, 0.45),
    Budget("nftables", "1000x3", CHANGE_API, ratio=1.2),
    Budget("iptables-legacy", "10000x3", START, ratio=2 / 3),
    Budget("iptables-legacy", "1000x3", START, ratio=1),
    Budget("iptables-legacy", "5000x50", START, ratio=1),
    Budget("iptables-legacy", "10000x3", CHANGE, ratio=1 / 6),
    Budget("iptables-legacy", "10000x3", CPU, ratio=1 / 4),
    Budget("iptables-legacy", "10000x3", RSS, 85, 0.45),
    Budget("iptables-nft", "10000x3", START, ratio=1 / 10),
    Budget("iptables-nft", "1000x3", START, ratio=1),
    Budget("iptables-nft", "10000x3", CHANGE, ratio=1 / 20),
    Budget("iptables-nft", "10000x3", CPU, ratio=1 / 4),
    Budget("iptables-nft", "10000x3", RSS, 85, 0.45),
    *(
        Budget(mode, "10000x3", title, most, part)
        for mode in ("nftables", "iptables-legacy", "iptables-nft")
        for title, most, part in (
            (IDLE, 0.05, None),
            (START_BYTES, None, 1.2),
            (START_API, None, 1.2),
            (CHANGE_BYTES, None, 1.2),
        )
    ),
)
GROWTHS = (
    Growth("nftables", "30000x3", 1.05),
    Growth("iptables-legacy", "30000x3", 1.15),
    Growth("iptables-nft", "30000x3", 1.15),
)


def check(results: Results) -> list[Check]:
    """Return each budget with what was measured."""
    return [_checked(results, budget) for budget in BUDGETS] + [_grown(results, budget) for budget in GROWTHS]


def _checked(results: Results, budget: Budget) -> Check:
    found = summarize(results.of(budget.shape, budget.mode, "pyproxy"), budget.metric)
    compared = ratio(results, budget.shape, budget.mode, budget.metric)
    limits, measured, kept = [], [], []
    if budget.most is not None:
        limits.append(f"{budget.most:g}")
        measured.append(number(found.value) if found else "-")
        kept.append(found.value <= budget.most if found else None)
    if budget.ratio is not None:
        limits.append(f"ratio {budget.ratio:.2g}")
        measured.append(f"ratio {ratio_text(compared)}")
        # An upper bound of the ratio that is above the limit decides nothing.
        kept.append(
            None if compared is None or (compared[1] and compared[0] > budget.ratio) else compared[0] <= budget.ratio
        )
    return Check(budget.mode, budget.shape, budget.title, ", ".join(limits), ", ".join(measured), _verdict(kept))


def _grown(results: Results, budget: Growth) -> Check:
    title = "new connection to a Service, compared with 10 Services"
    found = growth(results, budget.shape, budget.mode, "pyproxy", "first packet p50")
    kept = found.value <= budget.most if found else None
    return Check(
        budget.mode, budget.shape, title, f"{budget.most:g}", number(found.value) if found else "-", _verdict([kept])
    )


def _verdict(kept: list[bool | None]) -> Verdict:
    if False in kept:
        return "missed"
    return "not measured" if None in kept else "met"


def number(value: float) -> str:
    """Return a number with three significant digits."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 0.001 else f"{value:.4f}"


def ratio_text(found: tuple[float, bool] | None) -> str:
    """Return a ratio."""
    if found is None:
        return "-"
    return ("below " if found[1] else "") + f"{found[0]:.2g}"
