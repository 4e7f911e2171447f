"""A host of the lab, as tests use it: serve, probe, connect, load, run.

A host does no network operation itself: it sends requests to the worker of its namespace, or starts programs there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self, cast

from .messages import Ask, Close, Open, ReportLoad, Send, Serve, StartLoad, StopLoad, StopServing
from .namespace import Namespace
from .process import Process
from .shape import ExternalHostPlan, NodePlan, PodPlan
from .values import IPAddress, LabError, LoadReport, Outcome, Ports, Probe, Verdict
from .workers import WorkerHandle


class Host:
    """A node, a pod or a host outside the cluster."""

    def __init__(
        self,
        plan: NodePlan | PodPlan | ExternalHostPlan,
        namespace: Namespace,
        worker: WorkerHandle,
        *,
        directory: Path,
        timeout_seconds: float,
    ) -> None:
        """Wrap the host of a plan; programs write their output to the directory, probes use this time-out."""
        self.plan = plan
        self.name = plan.name
        self.addresses = plan.addresses
        self.namespace = namespace
        self.worker = worker
        self.processes: list[Process] = []
        self._directory = directory
        self._timeout_seconds = timeout_seconds
        self._starts: Counter[str] = Counter()

    def __repr__(self) -> str:
        """Show the name, for failure messages."""
        return f"<Host {self.name}>"

    def address(self, version: int) -> IPAddress:
        """Return the host's first address of the IP version."""
        return _of_version(self.addresses, version)

    def second_address(self, version: int) -> IPAddress:
        """Return the host's address on the second segment; pods have none."""
        return _of_version(() if isinstance(self.plan, PodPlan) else self.plan.second_addresses, version)

    @property
    def ipv4(self) -> IPAddress:
        """The host's first IPv4 address."""
        return self.address(4)

    @property
    def ipv6(self) -> IPAddress:
        """The host's first IPv6 address."""
        return self.address(6)

    def serve(self, *, tcp: Iterable[int] = (), udp: Iterable[int] = (), sctp: Iterable[int] = ()) -> None:
        """Serve on these ports as well, under the host's name; they are open when this returns."""
        self.worker.call(Serve(Ports(tuple(tcp), tuple(udp), tuple(sctp))))

    def stop_serving(self, ports: Ports | None = None, *, keep_connections: bool = False) -> None:
        """Close these ports, or all.

        Established connections are reset, as when a server process exits. With `keep_connections` they stay open, as
        when a server drains.
        """
        self.worker.call(StopServing(ports, keep_connections))

    def probe(self, *probes: Probe) -> list[Outcome]:
        """Send the probes concurrently, and return the outcome of each."""
        return probe_all([(self, probe) for probe in probes])

    def timed(self, probe: Probe) -> Probe:
        """Return the probe with the lab's time-out, unless it has one."""
        return probe if probe.timeout_seconds else replace(probe, timeout_seconds=self._timeout_seconds)

    def connect(self, probe: Probe) -> Connection:
        """Open a connection and keep it open; raises LabError unless a server answers."""
        number, outcome = self.worker.call(Open(self.timed(probe)))
        connection = Connection(self.worker, number, outcome)
        if outcome.verdict is not Verdict.REPLY:
            connection.close()
            message = f"{self.name} to {probe.to}: {outcome}"
            raise LabError(message)
        return connection

    def load(self, probe: Probe, *, per_second: float) -> Load:
        """Send the probe repeatedly, each time from a new socket, until the load is stopped."""
        return Load(self.worker, self.worker.call(StartLoad(self.timed(probe), per_second, is_held=False)))

    def hold(self, probe: Probe, *, per_second: float) -> Load:
        """Open a connection and send requests on it until the load is stopped or a request fails."""
        return Load(self.worker, self.worker.call(StartLoad(self.timed(probe), per_second, is_held=True)))

    def run(self, *argv: str, stdin: str = "", env: Mapping[str, str] | None = None) -> str:
        """Run a short command on the host and return its output; raises LabError if it fails."""
        return self.namespace.run(argv, stdin=stdin, env=env)

    def start(self, *argv: str, env: Mapping[str, str] | None = None) -> Process:
        """Start a program on the host; it is stopped when the lab is closed, or earlier by the test."""
        program = Path(argv[0]).name
        self._starts[program] += 1
        files = self._directory / f"{self.name}-{program}-{self._starts[program]}"
        process = Process(self.namespace, argv, files=files, env=env)
        self.processes.append(process)
        return process


class Connection:
    """A client socket kept open: a TCP connection, or a UDP socket that keeps its source port."""

    def __init__(self, worker: WorkerHandle, number: int, greeting: Outcome) -> None:
        """Wrap the open socket that has this number in the worker."""
        self.greeting = greeting
        self._worker = worker
        self._number: int | None = number

    def ask(self) -> Outcome:
        """Send one more line or datagram, and return the outcome."""
        if self._number is None:
            message = "the connection is closed"
            raise LabError(message)
        return self._worker.call(Ask(self._number))

    def close(self) -> None:
        """Close the socket; may be called twice."""
        if self._number is not None:
            self._worker.call(Close(self._number))
        self._number = None

    def __enter__(self) -> Self:
        """Close at the end of the block."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close."""
        self.close()


class Load:
    """A stream of requests that runs while the test does something."""

    def __init__(self, worker: WorkerHandle, number: int) -> None:
        """Wrap the load that has this number in the worker."""
        self._worker = worker
        self._number = number
        self._final: LoadReport | None = None

    def report(self) -> LoadReport:
        """Return the results so far; after `stop`, all results."""
        return self._final or self._worker.call(ReportLoad(self._number))

    def stop(self) -> LoadReport:
        """Stop the load and return all results; may be called twice."""
        if self._final is None:
            self._final = self._worker.call(StopLoad(self._number))
        return self._final

    def __enter__(self) -> Self:
        """Stop at the end of the block; `report` then returns all results."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Stop."""
        self.stop()


def probe_all(flows: Sequence[tuple[Host, Probe]]) -> list[Outcome]:
    """Send probes from several hosts, of one lab or several, concurrently; the outcomes are in the order of the flows."""
    by_host: dict[Host, list[int]] = {}
    for index, (host, _) in enumerate(flows):
        by_host.setdefault(host, []).append(index)
    requests = {
        host: host.worker.send(Send(tuple(host.timed(flows[index][1]) for index in indexes)))
        for host, indexes in by_host.items()
    }
    outcomes: dict[int, Outcome] = {}
    for host, indexes in by_host.items():
        answer = cast("tuple[Outcome, ...]", host.worker.receive(requests[host]))
        outcomes |= zip(indexes, answer, strict=True)
    return [outcomes[index] for index in range(len(flows))]


def _of_version(addresses: Iterable[IPAddress], version: int) -> IPAddress:
    for address in addresses:
        if address.version == version:
            return address
    message = f"the host has no IPv{version} address"
    raise LabError(message)
