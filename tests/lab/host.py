"""A host of the lab as tests use it: serve, probe, connect, load, run.

Law: a host does nothing itself; it asks the resident of its namespace, or starts a program there.
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
from .nursery import Resident
from .process import Process
from .shape import NodePlan, PodPlan, StrangerPlan
from .values import IPAddress, LabError, LoadReport, Outcome, Ports, Probe, Verdict


class Host:
    """A node, a pod or a host outside the cluster."""

    def __init__(
        self,
        plan: NodePlan | PodPlan | StrangerPlan,
        namespace: Namespace,
        resident: Resident,
        *,
        directory: Path,
        timeout_seconds: float,
    ) -> None:
        """Stand for the host of that plan; programs write to the directory, probes wait that long."""
        self.plan = plan
        self.name = plan.name
        self.addresses = plan.addresses
        self.namespace = namespace
        self.resident = resident
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
        """Answer on these ports too, under the host's name; they are open when this returns."""
        self.resident.call(Serve(Ports(tuple(tcp), tuple(udp), tuple(sctp))))

    def stop_serving(self, ports: Ports | None = None, *, keep_connections: bool = False) -> None:
        """Close these ports, or all.

        Made connections end with them, as with a server's process; `keep_connections` is a server that drains.
        """
        self.resident.call(StopServing(ports, keep_connections))

    def probe(self, *probes: Probe) -> list[Outcome]:
        """Send the probes, all at once, and return what each met."""
        return probe_all([(self, probe) for probe in probes])

    def timed(self, probe: Probe) -> Probe:
        """Return the probe with the lab's time-out, unless it has its own."""
        return probe if probe.timeout_seconds else replace(probe, timeout_seconds=self._timeout_seconds)

    def connect(self, probe: Probe) -> Connection:
        """Open a connection and keep it; raises unless a server answers."""
        number, outcome = self.resident.call(Open(self.timed(probe)))
        connection = Connection(self.resident, number, outcome)
        if outcome.verdict is not Verdict.REPLY:
            connection.close()
            message = f"{self.name} to {probe.to}: {outcome}"
            raise LabError(message)
        return connection

    def load(self, probe: Probe, *, per_second: float) -> Load:
        """Send the probe again and again, each time from a new socket, until the load is stopped."""
        return Load(self.resident, self.resident.call(StartLoad(self.timed(probe), per_second)))

    def run(self, *argv: str, stdin: str = "", env: Mapping[str, str] | None = None) -> str:
        """Run a short command on the host and return its output; raises if it fails."""
        return self.namespace.run(argv, stdin=stdin, env=env)

    def start(self, *argv: str, env: Mapping[str, str] | None = None) -> Process:
        """Start a program on the host; the lab stops it at the latest when it ends itself."""
        program = Path(argv[0]).name
        self._starts[program] += 1
        files = self._directory / f"{self.name}-{program}-{self._starts[program]}"
        process = Process(self.namespace, argv, files=files, env=env)
        self.processes.append(process)
        return process


class Connection:
    """A client socket kept open: a TCP connection, or a UDP socket that keeps its source port."""

    def __init__(self, resident: Resident, number: int, greeting: Outcome) -> None:
        """Stand for the resident's socket of that number."""
        self.greeting = greeting
        self._resident = resident
        self._number: int | None = number

    def ask(self) -> Outcome:
        """Send one more line or datagram and return who answered."""
        if self._number is None:
            message = "the connection is closed"
            raise LabError(message)
        return self._resident.call(Ask(self._number))

    def close(self) -> None:
        """Close it; closing twice is fine."""
        if self._number is not None:
            self._resident.call(Close(self._number))
        self._number = None

    def __enter__(self) -> Self:
        """Close at the end of the block."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close."""
        self.close()


class Load:
    """A stream of requests that runs while the test does something."""

    def __init__(self, resident: Resident, number: int) -> None:
        """Stand for the resident's load of that number."""
        self._resident = resident
        self._number = number
        self._final: LoadReport | None = None

    def report(self) -> LoadReport:
        """Tell what it met so far; after the end, all it met."""
        return self._final or self._resident.call(ReportLoad(self._number))

    def stop(self) -> LoadReport:
        """End it, and tell all it met; stopping twice is fine."""
        if self._final is None:
            self._final = self._resident.call(StopLoad(self._number))
        return self._final

    def __enter__(self) -> Self:
        """Stop at the end of the block; `report` then tells all."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Stop."""
        self.stop()


def probe_all(flows: Sequence[tuple[Host, Probe]]) -> list[Outcome]:
    """Send probes from many hosts, of one lab or several, all at once; the outcomes are in the order of the flows."""
    by_host: dict[Host, list[int]] = {}
    for index, (host, _) in enumerate(flows):
        by_host.setdefault(host, []).append(index)
    requests = {
        host: host.resident.send(Send(tuple(host.timed(flows[index][1]) for index in indexes)))
        for host, indexes in by_host.items()
    }
    outcomes: dict[int, Outcome] = {}
    for host, indexes in by_host.items():
        answer = cast("tuple[Outcome, ...]", host.resident.receive(requests[host]))
        outcomes |= zip(indexes, answer, strict=True)
    return [outcomes[index] for index in range(len(flows))]


def _of_version(addresses: Iterable[IPAddress], version: int) -> IPAddress:
    for address in addresses:
        if address.version == version:
            return address
    message = f"no IPv{version} address here"
    raise LabError(message)
