"""Detects when rules change in a network namespace, to the millisecond and with almost no cost for the program under test.

Times come from the kernel's change counters; a dump, which is slow, only shows which change it was. IPVS has no counter:
there the real servers are listed repeatedly.
"""

import re
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Hashable
from functools import partial
from typing import Protocol, Self

from pyproxy.backends.iptables.ruleset import TABLES
from pyproxy.linux.ruleset_counter import LegacyCounter, NftGeneration
from pyproxy.model.address import Family
from tests.cluster.kubeproxy import Backend, ruleset
from tests.cluster.namespace import call_inside, command_inside
from tests.cluster.process import ClusterError

_POLL_SECONDS = 0.001
_QUIET_SECONDS = 0.3
_AGAIN_SECONDS = 5.0
"""Time until the same rules are read again: a change of a legacy table that keeps its size is not counted."""
_IPVS_LOOK_SECONDS = 0.25
_ENDPOINT = re.compile(r"\b(\d+\.\d+\.\d+\.\d+)(?::| \. )8080\b")
"""An endpoint in a dump of iptables, ipvsadm or nft; all endpoints have this port."""


class NotProgrammedError(Exception):
    """The rules were not there within the time limit."""


class Watch(Protocol):
    """Returns when endpoints were programmed, on the clock of `time.monotonic`."""

    def __enter__(self) -> Self:
        """Begin."""

    def __exit__(self, *_: object) -> None:
        """End."""

    def programmed(
        self, ips: Collection[str], limit_seconds: float, before_dump: Callable[[], object] = time.monotonic
    ) -> float:
        """Wait for the rules of all these endpoints, and return the time of the last change that the wait observed.

        ``before_dump`` is called before each dump of the rules, which can take longer than what is measured.

        Raises:
            NotProgrammedError: they are not there within the limit.
        """


def watch(namespace: str, backend: Backend) -> Watch:
    """Return the watch for a mode in a namespace."""
    return IpvsWatch(namespace) if backend.startswith("ipvs") else KernelWatch(namespace, backend)


class IpvsWatch:
    """Reads virtual and real servers, addresses and sets."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(self, *_: object) -> None:
        """End."""

    def programmed(
        self, ips: Collection[str], limit_seconds: float, before_dump: Callable[[], object] = time.monotonic
    ) -> float:
        """Wait for real servers, and for an address and a member of a set for each virtual server."""
        deadline = time.monotonic() + limit_seconds
        while time.monotonic() < deadline:
            before_dump()
            servers = self._output("ipvsadm", "--list", "--numeric")
            if set(_ENDPOINT.findall(servers)) >= set(ips):
                services = len(re.findall(r"^TCP +\S+:80 ", servers, re.MULTILINE))
                if services <= self._members() and services <= self._addresses():
                    return time.monotonic()
            time.sleep(_IPVS_LOOK_SECONDS)
        raise NotProgrammedError

    def _members(self) -> int:
        """Return the number of cluster IPs in their set; its name has the same end in both programs."""
        sets = self._output("ipset", "list", "-terse").split("Name: ")
        return sum(
            int(found)
            for each in sets
            if each.partition("\n")[0].endswith("CLUSTER-IP")
            for found in re.findall(r"Number of entries: (\d+)", each)
        )

    def _addresses(self) -> int:
        return len(self._output("ip", "-4", "route", "show", "table", "local", "dev", "kube-ipvs0").splitlines())

    def _output(self, *words: str) -> str:
        return subprocess.run(command_inside(self._namespace, words), check=True, capture_output=True, text=True).stdout


class KernelWatch:
    """Records the times at which the rules changed, during its ``with`` block."""

    def __init__(self, namespace: str, backend: Backend) -> None:
        """Create a watch of the tables of a mode in a namespace."""
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

    def programmed(
        self, ips: Collection[str], limit_seconds: float, before_dump: Callable[[], object] = time.monotonic
    ) -> float:
        """Wait for the rules of all these endpoints, and return the time of the last change that the wait observed.

        A dump takes CPU time, with many Services seconds of it, so the rules are only read once they have not changed for
        a moment.
        """
        wanted = set(ips)
        deadline = time.monotonic() + limit_seconds
        read, again = -1, 0.0
        while time.monotonic() < deadline:
            count = len(self._times)
            is_known = count == read and time.monotonic() < again
            if is_known or (count and time.monotonic() - self._times[-1] < _QUIET_SECONDS):
                time.sleep(_POLL_SECONDS)
                continue
            before_dump()
            found = set(_ENDPOINT.findall(ruleset(self._namespace, self._backend)))
            time.sleep(2 * _POLL_SECONDS)  # so that a change that is in the dump is counted
            if count == len(self._times):
                read, again = count, time.monotonic() + _AGAIN_SECONDS
                if found >= wanted:
                    return self._times[-1] if count else time.monotonic()
        raise NotProgrammedError

    def next_change(self, after: float, limit_seconds: float) -> float:
        """Return the time of the first change after a time.

        A legacy table has a counter only of the number and the size of its rules.

        Raises:
            NotProgrammedError: the rules did not change within the limit.
        """
        deadline = time.monotonic() + limit_seconds
        while time.monotonic() < deadline:
            if self._times and self._times[-1] > after:
                return next(found for found in self._times if found > after)
            time.sleep(_POLL_SECONDS)
        raise NotProgrammedError

    def _watch(self) -> None:
        known = self._look()
        while not self._ended.wait(_POLL_SECONDS):
            value = self._look()
            if value != known:
                known = value
                self._times.append(time.monotonic())


def _counter(
    namespace: str, backend: Backend
) -> tuple[Callable[[], Hashable], list[LegacyCounter] | list[NftGeneration]]:
    """Return a function whose result changes with the rules, and its counters, which belong to the namespace."""
    if backend == "iptables-legacy":
        tables = [call_inside(namespace, partial(LegacyCounter, family, TABLES)) for family in Family]
        return lambda: tuple(counter.read() for counter in tables), tables
    if backend in {"iptables-nft", "nftables"}:
        generation = call_inside(namespace, NftGeneration)
        return generation.read, [generation]
    message = f"{backend}: there is no counter for its changes"
    raise ClusterError(message)
