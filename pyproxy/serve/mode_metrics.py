"""The metrics in which proxy modes differ. This module does not import prometheus_client, which takes 5 MB."""

from collections.abc import Callable, Mapping
from typing import NamedTuple


class ModeMetrics(NamedTuple):
    """Names that kube-proxy uses in one mode, without ``kubeproxy_`` and ``_total``; empty if the mode has no such metric."""

    failures: str
    """Counter of writes that the kernel rejected."""
    partial_failures: str = ""
    """Counter of those in partial syncs."""
    cleanup_failures: str = ""
    """Counter of rejected removals of unused entries."""
    rules: str = ""
    """Prefix of the gauges of rules in the kernel (``_total``) and of rules written by the last sync (``_last``)."""
    has_full_syncs: bool = True
    """Whether the durations of full and of partial syncs also have a histogram each."""


class PacketCount(NamedTuple):
    """A packet counter of the kernel that becomes a metric."""

    metric: str
    """Name of the metric, without ``_total``."""
    help: str
    readers: Mapping[tuple[str, ...], Callable[[], int]]
    """By values of the labels, functions that return the packets; they raise OSError if there is no counter."""
    labels: tuple[str, ...] = ()
