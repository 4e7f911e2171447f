"""Metrics of packets, connection tracking and this process, which are read from the kernel at each scrape.

If a file does not exist (connection tracking is not in use yet, or the kernel has no statistics), only its metrics are
missing.
"""

import resource
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

_PROC = Path("/proc")
# By column of `/proc/net/stat/nf_conntrack`, name without `_total` and help.
_CONNTRACK_COUNTERS = {
    "insert_failed": (
        "pyproxy_conntrack_insert_failures",
        "Connections that could not be tracked, because two packets created them at the same time",
    ),
    "drop": ("pyproxy_conntrack_drops", "Packets dropped because their connection could not be tracked"),
    "early_drop": ("pyproxy_conntrack_early_drops", "Connections removed early, to make room in a full table"),
}
# Value for no limit, as in Go's client library.
_UNLIMITED = float(2**64)


class PacketCounter(Collector):
    """A metric that is read from packet counters of the kernel at each scrape. Counters that do not exist are left out.

    Args:
        name: the metric's name without ``_total``.
        text: the metric's help.
        readers: by label values, a function that returns a number of packets and raises OSError without a counter.
        labels: names of the labels.
    """

    def __init__(
        self, name: str, text: str, readers: Mapping[tuple[str, ...], Callable[[], int]], labels: Sequence[str] = ()
    ) -> None:
        self._name = name
        self._text = text
        self._readers = readers
        self._labels = labels

    def collect(self) -> Iterator[Metric]:
        """Yield the metric, unless no counter can be read."""
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for values, read in self._readers.items():
            with suppress(OSError):
                family.add_metric(values, read())
        if family.samples:
            yield family


class ProcCollector(Collector):
    """Metrics of this network namespace's conntrack table, and process metrics that `ProcessCollector` does not have.

    Args:
        proc: mount point of procfs.
    """

    def __init__(self, proc: Path = _PROC) -> None:
        self._proc = proc

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics that can be read."""
        readers: tuple[Callable[[], Iterator[Metric]], ...] = (
            self._conntrack_table,
            self._conntrack_counters,
            self._network,
        )
        for read in readers:
            # A list, so that a reader that fails halfway yields nothing.
            with suppress(OSError, ValueError, LookupError):
                yield from list(read())
        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        yield GaugeMetricFamily(
            "process_virtual_memory_max_bytes",
            "Maximum amount of virtual memory available in bytes.",
            value=_UNLIMITED if limit == resource.RLIM_INFINITY else limit,
        )

    def _conntrack_table(self) -> Iterator[Metric]:
        settings = self._proc / "sys/net/netfilter"
        count, limit = (int((settings / name).read_text()) for name in ("nf_conntrack_count", "nf_conntrack_max"))
        yield GaugeMetricFamily("pyproxy_conntrack_entries", "Tracked connections", value=count)
        yield GaugeMetricFamily(
            "pyproxy_conntrack_entries_limit",
            "Maximum number of tracked connections; above it packets of new connections are dropped",
            value=limit,
        )

    def _conntrack_counters(self) -> Iterator[Metric]:
        # A header line, and a line of hexadecimal numbers for each CPU. A kernel may lack a column.
        head, *cpus = (self._proc / "self/net/stat/nf_conntrack").read_text().splitlines()
        rows = [dict(zip(head.split(), line.split(), strict=False)) for line in cpus]
        for column, (name, text) in _CONNTRACK_COUNTERS.items():
            yield CounterMetricFamily(name, text, value=sum(int(row[column], 16) for row in rows))

    def _network(self) -> Iterator[Metric]:
        # Pairs of lines with the same prefix: names, then values (`net/ipv4/proc.c`).
        lines = (self._proc / "self/net/netstat").read_text().splitlines()
        names, values = (line.split() for line in lines if line.startswith("IpExt:"))
        found = dict(zip(names, values, strict=True))
        for name, column, text in (
            ("process_network_receive_bytes", "InOctets", "Bytes received in the network namespace of the process."),
            ("process_network_transmit_bytes", "OutOctets", "Bytes sent in the network namespace of the process."),
        ):
            yield CounterMetricFamily(name, text, value=int(found[column]))
