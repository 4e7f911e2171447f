"""The lab: a small cluster of network namespaces.

Leaving the lab removes everything that it created, also after an exception. Entering a lab removes what killed runs
have left. The namespace of the caller is never changed.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from . import namespace, wiring
from .host import Host
from .messages import SpawnRequest
from .namespace import Namespace
from .shape import CLIENT_POD, DATABASE, ExternalHostPlan, NodePlan, Plan, PodPlan, Shape, plan
from .values import DEFAULT_TIMEOUT_SECONDS, LabError
from .workers import WorkerPool

PORTS_SECONDS = 10.0


class Lab:
    """A running lab; a context manager."""

    def __init__(self, shape: Shape | None = None, *, timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS) -> None:
        """Plan a lab; entering builds it. A slow machine, such as an emulated one, needs a longer time-out."""
        self._timeout_seconds = timeout_seconds
        self.plan: Plan = plan(shape or Shape())
        self.hosts: dict[str, Host] = {}
        """Every host by name: node1 …, pod1-1 …, client-pod, outside1 …, database."""
        self._undo = ExitStack()

    def __enter__(self) -> Self:
        """Build the lab."""
        with ExitStack() as undo:
            self._build(undo)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Remove the lab."""
        self._undo.close()
        self.hosts.clear()

    def __getitem__(self, name: str) -> Host:
        """Return the host with this name."""
        return self.hosts[name]

    @property
    def nodes(self) -> list[Host]:
        """The nodes of the cluster."""
        return [self.hosts[node.name] for node in self.plan.nodes]

    @property
    def pods(self) -> list[Host]:
        """The pods of all nodes, without the client pod."""
        return [pod for node in self.nodes for pod in self.pods_of(node)]

    @property
    def client_pod(self) -> Host:
        """A pod on the first node that serves nothing."""
        return self.hosts[CLIENT_POD]

    @property
    def outside(self) -> list[Host]:
        """Clients outside the cluster; the n-th reaches Service and external addresses through the n-th node."""
        return [self.hosts[host.name] for host in self.plan.external_hosts if host.via]

    @property
    def database(self) -> Host:
        """A host outside the cluster without routes to Service addresses."""
        return self.hosts[DATABASE]

    def pods_of(self, node: Host) -> list[Host]:
        """Return the node's pods, without the client pod."""
        pods = next(planned.pods for planned in self.plan.nodes if planned.name == node.name)
        return [self.hosts[pod.name] for pod in pods if pod.name != CLIENT_POD]

    def _build(self, undo: ExitStack) -> None:
        _remove_abandoned()
        prefix = namespace.new_prefix()
        directory = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix=prefix)))
        undo.callback(namespace.remove, prefix)
        pool = WorkerPool(directory / "workers.stderr")
        undo.callback(pool.close)
        names = wiring.host_names(self.plan)
        created = namespace.create([f"{prefix}{name}" for name in names])
        namespaces = dict(zip(names, created, strict=True))
        workers = pool.spawn(_spawn_requests(self.plan, namespaces))
        self._wire(namespaces)
        undo.callback(self._stop_processes)
        for host in _planned_hosts(self.plan):
            self.hosts[host.name] = Host(
                host,
                namespaces[host.name],
                workers[host.name],
                directory=directory,
                timeout_seconds=self._timeout_seconds,
            )

    def _wire(self, namespaces: dict[str, Namespace]) -> None:
        names = {name: space.name for name, space in namespaces.items()}
        namespace.finish([namespace.ip_batch(wiring.links(self.plan, names))])
        configurations = wiring.configurations(self.plan)
        namespace.finish([namespaces[name].ip_batch(lines) for name, lines in configurations.items()])
        for name in (wiring.SWITCH, *(node.name for node in self.plan.nodes)):
            _wait_until_ports_forward(namespaces[name])

    def _stop_processes(self) -> None:
        for host in self.hosts.values():
            for process in host.processes:
                process.close()


def _remove_abandoned() -> None:
    """Remove the namespaces and temporary directories of runs that were killed."""
    namespace.remove_abandoned()
    for directory in Path(tempfile.gettempdir()).iterdir():
        if namespace.is_abandoned(directory.name):
            shutil.rmtree(directory, ignore_errors=True)  # another run may be cleaning up at the same time


def _spawn_requests(plan: Plan, namespaces: dict[str, Namespace]) -> list[SpawnRequest]:
    sysctls = wiring.sysctls(plan)
    return [SpawnRequest(name, str(space.path), sysctls[name]) for name, space in namespaces.items()]


def _planned_hosts(plan: Plan) -> Iterator[NodePlan | PodPlan | ExternalHostPlan]:
    yield from plan.nodes
    for node in plan.nodes:
        yield from node.pods
    yield from plan.external_hosts


def _wait_until_ports_forward(bridge: Namespace) -> None:
    """Wait until all ports of the bridge forward frames; the kernel changes their state asynchronously."""
    deadline = time.monotonic() + PORTS_SECONDS
    while True:
        ports = json.loads(bridge.run(["bridge", "-json", "link", "show"]))
        closed = [port["ifname"] for port in ports if port["state"] != "forwarding"]
        if not closed:
            return
        if time.monotonic() > deadline:
            message = f"the ports {closed} of {bridge.name} do not forward"
            raise LabError(message)
