"""Results of a benchmark: records of runs, as JSON, and what is computed from them. It measures nothing itself.

A percentile is that of all observations of all runs; its spread is that of the percentiles of the single runs. Every other
value is a median of the runs.
"""

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

Program: TypeAlias = Literal["kube-proxy", "pyproxy"]
PROGRAMS: tuple[Program, ...] = ("kube-proxy", "pyproxy")
Values: TypeAlias = dict[str, list[float]]
"""Observations by name: times in s, sizes in bytes, shares of 1."""
FEW = "10x3"
"""The shape of the small cluster in measurements of the first packet."""


@dataclass(frozen=True, slots=True)
class Record:
    """One run of one program."""

    shape: str
    mode: str
    program: Program
    values: Values
    not_done: str = ""
    """The phase that did not end within the time limit."""
    limit: float = 0.0
    """The time limit, in s."""
    load: float = 0.0
    """The load average of one minute at the start of the run."""


@dataclass(slots=True)
class Results:
    """Records of one machine."""

    machine: dict[str, str]
    records: list[Record] = field(default_factory=list)

    def of(self, shape: str, mode: str, program: Program) -> list[Record]:
        """Return the records of one program in one case."""
        return [each for each in self.records if (each.shape, each.mode, each.program) == (shape, mode, program)]

    def save(self, path: Path) -> None:
        """Write a JSON file."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")


def load(paths: Iterable[Path]) -> Results:
    """Return the results of several files, which ran on the same machine."""
    found = [json.loads(path.read_text()) for path in paths]
    machine = found[-1]["machine"]
    return Results(machine, [Record(**record) for each in found for record in each["records"]])


class Summary(NamedTuple):
    """A value over all runs, and the lowest and highest of the single runs."""

    value: float
    low: float
    high: float
    runs: int
    observations: int


@dataclass(frozen=True, slots=True)
class Metric:
    """A row of a table."""

    title: str
    name: str
    """Of the values in a record."""
    factor: float = 1.0
    """From the units of records to that of the title."""
    percentile: int | None = None


METRICS = (
    Metric("start until the last rule, s", "start"),
    Metric("CPU time of the start, s", "start cpu"),
    Metric("change of an endpoint until its first reply, p50, ms", "change", 1e3, 50),
    Metric("change of an endpoint until its first reply, p90, ms", "change", 1e3, 90),
    Metric("change of an endpoint until its first reply, p99, ms", "change", 1e3, 99),
    Metric("part of the API server, until it confirms the change, p50, ms", "change api", 1e3, 50),
    Metric("CPU time per change, ms", "change cpu", 1e3),
    Metric("change during 100 changes/s, p50, ms", "churn change", 1e3, 50),
    Metric("change during 100 changes/s, p90, ms", "churn change", 1e3, 90),
    Metric("change during 100 changes/s, p99, ms", "churn change", 1e3, 99),
    Metric("CPU time per change at 100 changes/s, ms", "churn cpu", 1e3),
    Metric("rolling restart of 1,000 Services, s", "restart"),
    Metric("rolling restart, from the last confirmation to its reply, ms", "restart lag", 1e3),
    Metric("CPU time of the rolling restart, s", "restart cpu"),
    Metric("resident memory after the start, MB", "start rss", 1e-6),
    Metric("resident memory at the end, MB", "rss", 1e-6),
    Metric("peak memory, MB", "peak", 1e-6),
    Metric("idle CPU, % of one CPU", "idle", 100),
    Metric("received from the API server for a start, MB", "start api bytes", 1e-6),
    Metric("CPU time of the API server for a start, s", "start api cpu"),
    Metric("received from the API server per change, kB", "churn api bytes", 1e-3),
    Metric("CPU time of the API server per change and agent, of ten agents, ms", "fleet api cpu", 1e3),
    Metric("received from the API server per change, by each of ten agents, kB", "fleet api bytes", 1e-3),
    Metric("established connection, GB/s", "throughput", 1e-9),
    Metric("established connection, round trip, p50, µs", "round trip p50", 1e6),
    Metric("established connection, round trip, p99, µs", "round trip p99", 1e6),
)
FIRST_PACKET = (
    Metric("new connection to a Service, p50, µs", "first packet p50", 1e6),
    Metric("new connection to a Service, p99, µs", "first packet p99", 1e6),
    Metric("new connection to a pod, p50, µs", "pod p50", 1e6),
    Metric("new connection to a pod, p99, µs", "pod p99", 1e6),
)


def percentile(values: Sequence[float], percent: int) -> float:
    """Return the smallest value that so many percent of the values do not exceed (nearest rank)."""
    return sorted(values)[max(0, -(-len(values) * percent // 100) - 1)]


def summarize(records: Sequence[Record], metric: Metric) -> Summary | None:
    """Return a metric over some runs, None if no run has it."""
    runs = [found for record in records if (found := record.values.get(metric.name))]
    if not runs:
        return None
    pooled = [value * metric.factor for run in runs for value in run]
    if metric.percentile is None:
        return Summary(statistics.median(pooled), min(pooled), max(pooled), len(runs), len(pooled))
    singles = [percentile(run, metric.percentile) * metric.factor for run in runs]
    return Summary(percentile(pooled, metric.percentile), min(singles), max(singles), len(runs), len(pooled))


def ratio(results: Results, shape: str, mode: str, metric: Metric) -> tuple[float, bool] | None:
    """Return pyproxy's value divided by kube-proxy's, and whether that is an upper bound because kube-proxy was not done."""
    ours = summarize(results.of(shape, mode, "pyproxy"), metric)
    records = results.of(shape, mode, "kube-proxy")
    theirs = summarize(records, metric)
    if not ours:
        return None
    if theirs and theirs.value > 0:
        return ours.value / theirs.value, False
    limits = [each.limit for each in records if each.not_done == "start"]
    return (ours.value / min(limits), True) if limits and metric.name == "start" else None


def interleaved(results: Results, shape: str, mode: str, program: Program) -> list[tuple[Record, Record]]:
    """Return the records of new connections with few and with many Services that were measured in the same rounds."""
    pairs = []
    few = None
    for record in results.records:
        if (record.mode, record.program) == (mode, program):
            is_done = "pod p50" in record.values
            if record.shape == FEW:
                few = record if is_done else None
            elif record.shape == shape and few and is_done:
                pairs.append((few, record))
    return pairs


def growth(results: Results, shape: str, mode: str, program: Program, name: str) -> Summary | None:
    """Return the latency with many Services divided by that with few, in pairs of the interleaved rounds."""
    ratios = [
        many_value / few_value
        for few, many in interleaved(results, shape, mode, program)
        for few_value, many_value in zip(few.values[name], many.values[name], strict=True)
    ]
    if not ratios:
        return None
    return Summary(statistics.median(ratios), min(ratios), max(ratios), len(ratios), len(ratios))
