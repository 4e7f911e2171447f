"""Sees when rules change in a network namespace, to the millisecond and almost without cost to who changes them.

Law: how long something takes is told by the kernel's own counters; a dump, which is slow, only says what it was.
"""

import threading
import time
from collections.abc import Callable, Hashable
from functools import partial
from typing import Self

from pyproxy.apply.ruleset_counter import LegacyCounter, NftGeneration
from pyproxy.model.address import Family
from pyproxy.model.ruleset import TABLES

from .kubeproxy import Backend, ruleset
from .namespace import call_inside
from .process import ClusterError

_POLL_SECONDS = 0.001
_PATIENCE_SECONDS = 300.0


class KernelWatch:
    """Keeps the times at which the rules changed, for as long as its ``with`` block lasts."""

    def __init__(self, namespace: str, backend: Backend) -> None:
        """Describe it: the namespace, and the mode whose tables are watched."""
        self._namespace = namespace
        self._backend: Backend = backend
        self._look, self._sockets = _counter(namespace, backend)
        self._times: list[float] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="kernel watch", daemon=True)

    def __enter__(self) -> Self:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self._ended.set()
        self._thread.join()
        for used in self._sockets:
            used.close()

    @property
    def changes(self) -> int:
        """Return how many times the rules have changed so far."""
        return len(self._times)

    def when(self, condition: Callable[[str], bool], what: str) -> float:
        """Wait until the rules meet a condition, and return when, on the clock of `time.monotonic`.

        Raises:
            ClusterError: they do not within `_PATIENCE_SECONDS`.
        """
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < deadline:
            before = len(self._times)
            met = condition(ruleset(self._namespace, self._backend))
            time.sleep(2 * _POLL_SECONDS)  # so that a change that is in the dump is counted
            if met and before == len(self._times):
                return self._times[-1] if self._times else time.monotonic()
            while not met and before == len(self._times) and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
        message = f"not within {_PATIENCE_SECONDS} s: {what}"
        raise ClusterError(message)

    def _watch(self) -> None:
        known = self._look()
        while not self._ended.wait(_POLL_SECONDS):
            value = self._look()
            if value != known:
                known = value
                self._times.append(time.monotonic())


def _counter(namespace: str, backend: Backend) -> tuple[Callable[[], Hashable], list[LegacyCounter] | list[NftGeneration]]:
    """Return what tells one state of the rules from another; its counters belong to the namespace they are made in."""
    if backend == "iptables-legacy":
        tables = [call_inside(namespace, partial(LegacyCounter, family, TABLES)) for family in Family]
        return lambda: tuple(counter.read() for counter in tables), tables
    if backend in {"iptables-nft", "nftables"}:
        generation = call_inside(namespace, NftGeneration)
        return generation.read, [generation]
    message = f"{backend}: there is no counter for its changes"
    raise ClusterError(message)
