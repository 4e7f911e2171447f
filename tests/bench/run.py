"""One run of one program in one mode: from its start in a network namespace without rules until it is stopped.

The phases are in this order, and all but the first are optional:

start     from exec until the last rule of all Services
idle      CPU time without changes
change    one endpoint is replaced by another after the agent is quiet, from the request until the new one answers
churn     the same, while a thousand other endpoints are replaced, a hundred each second
restart   all endpoints of a thousand Services are replaced as fast as the API server confirms it
traffic   an established connection through a Service: throughput, and time of a round trip

CPU times include the programs that an agent runs, and those per change exclude what the agent uses when idle.
"""

import json
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from tests.cluster.agent import Agent
from tests.cluster.controlplane import ControlPlane
from tests.cluster.kubeproxy import Backend, KubeProxy
from tests.cluster.namespace import fresh_namespace
from tests.cluster.process import Process

from .cluster import NODE, PORT, ApiConnection, Cluster, service_ip
from .established import measure_connection
from .kernel_watch import KernelWatch, NotProgrammedError, watch
from .probe import Probe, probe
from .results import Program, Values, percentile
from .writer import Writer

PHASES = ("start", "idle", "change", "churn", "restart", "traffic")
IN_LARGE_SERVICES = ("start", "idle", "change")
"""Phases that need no connection to a single endpoint of the probed Service."""
FLAGS = ("--cluster-cidr=10.244.0.0/16",)
PROBES = ("10.250.250.1", "10.250.250.2")
"""The endpoints that the probed Service has in turn, one at a time."""
_SETTLE_SECONDS = 1.2
"""Longer than kube-proxy's shortest time between two syncs, 1 s."""
_QUIET_SHARE = 0.1
"""Of a CPU: a process that uses less has done its work."""
_IDLE_SECONDS = 10.0
CHURN_CHANGES, CHURN_PER_SECOND = 1000, 100.0
_CHURN_PAUSE_SECONDS = 0.05
_RESTARTED = 1000
MOST_ENDPOINTS = 100
"""Of a Service whose endpoints can be observed by connections: with more, its changes are observed in the kernel."""


def start_program(
    program: Program, cluster: Cluster, namespace: str, backend: Backend, stack: ExitStack
) -> tuple[Process, str]:
    """Start one of the programs until the stack is closed; return its process, and the node's interface."""
    kubeconfig, device = cluster.connect_node(namespace)
    plane = cluster.control_plane
    if program == "pyproxy":
        agent = Agent(plane, namespace, node=NODE, backend=backend, flags=FLAGS, kubeconfig=kubeconfig)
        return stack.enter_context(agent).process, device
    proxy = KubeProxy(plane, namespace, node=NODE, backend=backend, flags=FLAGS, kubeconfig=kubeconfig)
    return stack.enter_context(proxy).process, device


def settle(process: Process | ControlPlane) -> None:
    """Wait until a process has done what it had to do."""
    before = float("-inf")
    while process.cpu_seconds() - before > _QUIET_SHARE * _SETTLE_SECONDS:
        before = process.cpu_seconds()
        time.sleep(_SETTLE_SECONDS)


class Run:
    """One run; `values` has what it has measured: times in s, sizes in bytes."""

    def __init__(  # noqa: PLR0913  # what distinguishes two runs
        self,
        cluster: Cluster,
        program: Program,
        backend: Backend,
        *,
        phases: Sequence[str],
        changes: int,
        limit_seconds: float,
        api_idle_rate: float,
    ) -> None:
        self.values: Values = defaultdict(list)
        self.not_done = ""
        """The phase that did not end within the limit."""
        self._cluster = cluster
        self._program: Program = program
        self._backend: Backend = backend
        self._phases = [phase for phase in PHASES if phase in phases or phase == "start"]
        self._changes = changes
        self._limit_seconds = limit_seconds
        self._api_idle_rate = api_idle_rate

    def perform(self, report: Callable[[str], None]) -> None:
        """Perform all phases, until one does not end within the limit; report the name of each."""
        phases = {
            "idle": self._idle,
            "change": self._change,
            "churn": self._churn,
            "restart": self._restart,
            "traffic": self._traffic,
        }
        with ExitStack() as stack:
            self._namespace = stack.enter_context(fresh_namespace())
            self._seen = stack.enter_context(watch(self._namespace, self._backend))
            self._api = ApiConnection(self._cluster.control_plane)
            stack.callback(self._api.close)
            phase = "start"
            try:
                self._start(stack)
                for phase in self._phases[1:]:
                    report(phase)
                    phases[phase]()
            except NotProgrammedError:
                self.not_done = phase
            self._values("rss", self._process.resident_bytes())
            self._values("peak", self._process.peak_bytes())

    def _start(self, stack: ExitStack) -> None:
        control_plane = self._cluster.control_plane
        self._probe: Probe | None = None
        if self._cluster.shape.endpoints <= MOST_ENDPOINTS:
            service = service_ip(self._cluster.probed), 80
            self._client = stack.enter_context(ExitStack())
            self._probe = self._client.enter_context(probe(self._namespace, service, PROBES, PORT, self._limit_seconds))
        api_cpu, started = control_plane.cpu_seconds(), time.monotonic()
        self._process, self._device = start_program(self._program, self._cluster, self._namespace, self._backend, stack)
        self._idle_rate = 0.0
        used: dict[str, float] = {}

        def before_dump() -> None:
            used["start cpu"] = self._process.cpu_seconds()
            used["start api cpu"] = self._api_busy(api_cpu, started)

        programmed = self._seen.programmed(self._cluster.endpoints(), self._limit_seconds, before_dump)
        self._values("start", programmed - started)
        for name, seconds in used.items():
            self._values(name, seconds)
        settle(self._process)
        self._values("start rss", self._process.resident_bytes())
        self._values("start api bytes", self._received())

    def _idle(self) -> None:
        before = self._process.cpu_seconds()
        time.sleep(_IDLE_SECONDS)
        self._idle_rate = (self._process.cpu_seconds() - before) / _IDLE_SECONDS
        self._values("idle", self._idle_rate)

    def _change(self) -> None:
        changed = self._move_probed if self._probe else self._resize
        changed()
        settle(self._process)
        before, began = self._process.cpu_seconds(), time.monotonic()
        for _ in range(self._changes):
            visible, api = changed()
            self._values("change", visible)
            self._values("change api", api)
            settle(self._process)
        self._values("change cpu", self._busy(before, began) / self._changes)

    def _move_probed(self) -> tuple[float, float]:
        """Replace the endpoint of the probed Service; return when it answered, and when the API server confirmed it."""
        assert self._probe
        number = self._cluster.probed
        [*_, ip] = (ip for ip in PROBES if {ip} != self._cluster.endpoints([number]))
        [patch] = self._cluster.set_endpoints(number, [ip])
        with self._probe.until_answered_by(ip) as answered:
            sent = time.monotonic()
            self._api.patch(*patch)
            api = time.monotonic() - sent
            return answered.result() - sent, api

    def _resize(self) -> tuple[float, float]:
        """Remove an endpoint of the first Service, or add it again; return when the kernel had it, and when the API server."""
        assert isinstance(self._seen, KernelWatch)
        [patch] = self._cluster.resize(0)
        sent = time.monotonic()
        self._api.patch(*patch)
        api = time.monotonic() - sent
        return self._seen.next_change(sent, self._limit_seconds) - sent, api

    def _churn(self) -> None:
        """Replace endpoints at a fixed rate, and observe changes of the probed Service meanwhile."""
        control_plane = self._cluster.control_plane
        self._move_probed()
        settle(self._process)
        before, began = self._process.cpu_seconds(), time.monotonic()
        received = self._received()
        own = 0
        with Writer(control_plane, self._cluster.churn(CHURN_CHANGES), CHURN_PER_SECOND) as writer:
            while writer.is_running:
                self._values("churn change", self._move_probed()[0])
                own += 1
                time.sleep(_CHURN_PAUSE_SECONDS)
            self._values("churn seconds", writer.last_confirmed() - writer.started)
        settle(self._process)
        count = CHURN_CHANGES + own
        self._values("churn cpu", self._busy(before, began) / count)
        self._values("churn api bytes", (self._received() - received) / count)

    def _restart(self) -> None:
        """Replace all endpoints of many Services, and then one of the probed Service, whose answer shows the end."""
        numbers, patches = self._cluster.restart(_RESTARTED)
        before, began = self._process.cpu_seconds(), time.monotonic()
        with Writer(self._cluster.control_plane, patches, None) as writer:
            writing = writer.last_confirmed() - writer.started
        sent = time.monotonic()
        lag = self._move_probed()[0]
        self._values("restart", writing + lag)
        self._values("restart lag", lag)
        settle(self._process)
        self._values("restart cpu", self._busy(before, began))
        self._seen.programmed(self._cluster.endpoints(numbers), self._limit_seconds - (time.monotonic() - sent))

    def _traffic(self) -> None:
        ip = self._move_probed() and next(iter(self._cluster.endpoints([self._cluster.probed])))
        self._client.close()
        service = service_ip(self._cluster.probed), 80
        throughput, round_trips = measure_connection(self._namespace, service, (ip, PORT))
        self._values("throughput", throughput)
        self._values("round trip p50", percentile(round_trips, 50))
        self._values("round trip p99", percentile(round_trips, 99))

    def _values(self, name: str, *values: float) -> None:
        self.values[name].extend(values)

    def _busy(self, before: float, began: float) -> float:
        """Return the CPU time since then, without that of an idle agent."""
        return max(0.0, self._process.cpu_seconds() - before - self._idle_rate * (time.monotonic() - began))

    def _api_busy(self, before: float, began: float) -> float:
        """Return the CPU time of the API server since then, without that of an idle one."""
        used = self._cluster.control_plane.cpu_seconds() - before
        return used - self._api_idle_rate * (time.monotonic() - began)

    def _received(self) -> int:
        return received_bytes(self._namespace, self._device)


def received_bytes(namespace: str, device: str) -> int:
    """Return how many bytes an interface has received, with the headers of Ethernet, IP and TCP."""
    command = ["ip", "-netns", namespace, "-statistics", "-json", "link", "show", "dev", device]
    shown = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return int(shown[0]["stats64"]["rx"]["bytes"])


def measure_idle_rate(cluster: Cluster) -> float:
    """Return the CPU time of the API server in each second without agents and changes, after some changes.

    The first changes cost more than later ones, because the API server keeps what it has parsed.
    """
    with Writer(cluster.control_plane, cluster.churn(CHURN_CHANGES), None) as writer:
        writer.last_confirmed()
    settle(cluster.control_plane)
    before = cluster.control_plane.cpu_seconds()
    time.sleep(_IDLE_SECONDS)
    return (cluster.control_plane.cpu_seconds() - before) / _IDLE_SECONDS
