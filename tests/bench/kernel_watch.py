"""Detects when rules change in a network namespace, to the millisecond and with almost no cost for the program under test.

Times come from the kernel's change counters; a dump, which is slow, only shows which change it was. IPVS has no counter:
there one Service is queried repeatedly, which is cheap, and at a start all of them, which is not.
"""

import re
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Hashable
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol, Self

from pyproxy.backends.iptables.ruleset import TABLES
from pyproxy.backends.ipvs.entries import VirtualServer
from pyproxy.backends.ipvs.virtual_servers import IpvsConnection
from pyproxy.linux.ruleset_counter import LegacyCounter, NftGeneration
from pyproxy.model.address import Family, parse_ip
from pyproxy.model.endpoint import Endpoint
from tests.cluster.kubeproxy import Backend, ruleset
from tests.cluster.namespace import call_inside, command_inside
from tests.cluster.process import ClusterError
from tests.lab.waiting import wait_until

_POLL_SECONDS = 0.001
_PATIENCE_SECONDS = 300.0
_IPVS_PATIENCE_SECONDS = 1800.0
_IPVS_POLL_SECONDS = 0.01
_IPVS_LOOK_SECONDS = 0.25
_TCP = 6


class Target(NamedTuple):
    """An endpoint of a Service; its port is ``port``."""

    service_ip: str
    ip: str
    port: int


class Watch(Protocol):
    """Returns when something was programmed, on the clock of `time.monotonic`."""

    def __enter__(self) -> Self:
        """Begin."""

    def __exit__(self, *_: object) -> None:
        """End."""

    def all_there(self, targets: Collection[Target]) -> float:
        """Wait for the rules of all Services, and return the time of the last one."""

    def there(self, target: Target) -> float:
        """Wait for the rule of one endpoint, and return its time."""


def watch(namespace: str, backend: Backend) -> Watch:
    """Return the watch for a mode in a namespace."""
    return IpvsWatch(namespace) if backend.startswith("ipvs") else KernelWatch(namespace, backend)


class IpvsWatch:
    """Reads virtual and real servers; at a start it also reads addresses and sets."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._servers = call_inside(namespace, IpvsConnection)

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self._servers.close()

    def all_there(self, targets: Collection[Target]) -> float:
        """Wait for real servers, and for one address and one member of a set for each Service."""
        services = len({target.service_ip for target in targets})

        def complete() -> bool:
            return self._reals() >= len(targets) and self._members() >= services and self._addresses() >= services

        return _when(complete, f"{len(targets)} real servers", _IPVS_LOOK_SECONDS)

    def there(self, target: Target) -> float:
        """Wait for a real server."""
        virtual = VirtualServer(parse_ip(target.service_ip), _TCP, 80)
        wanted = Endpoint(parse_ip(target.ip), target.port)

        def complete() -> bool:
            return any(endpoint == wanted for endpoint, _ in self._servers.reals(virtual))

        return _when(complete, f"a real server {target.ip}", _IPVS_POLL_SECONDS)

    def _reals(self) -> int:
        return call_inside(self._namespace, Path("/proc/thread-self/net/ip_vs").read_text).count("->") - 1

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


def _when(condition: Callable[[], bool], what: str, poll_seconds: float) -> float:
    wait_until(condition, what, timeout_seconds=_IPVS_PATIENCE_SECONDS, poll_seconds=poll_seconds)
    return time.monotonic()


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

    def all_there(self, targets: Collection[Target]) -> float:
        """Wait for the rules of all Services, and return the time of the last one."""
        *_, last = targets

        def complete(rules: str) -> bool:
            # Most dumps are not complete. Search for the last one first, because searching for all takes long.
            return _is_in(last, rules) and all(_is_in(target, rules) for target in targets)

        return self._when(complete, "all rules")

    def there(self, target: Target) -> float:
        """Wait for the rule of one endpoint, and return its time."""
        return self._when(partial(_is_in, target), f"a rule for {target.ip}")

    def _when(self, condition: Callable[[str], bool], what: str) -> float:
        """Wait until the rules meet a condition, and return the time, on the clock of `time.monotonic`.

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


def _is_in(target: Target, rules: str) -> bool:
    return f"{target.ip}:{target.port}" in rules or f"{target.ip} . {target.port}" in rules


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
