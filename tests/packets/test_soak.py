"""An agent that follows many changes for a long time: it leaks nothing, misses nothing, and is idle afterwards.

SIG Scalability calls a cluster steady with up to 20 changes of pods in a second; here are ten times as many changes of Services
and EndpointSlices. The API server is a fake, so that the machine has time for the agent.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.cluster.namespace import call_inside, fresh_namespace
from tests.cluster.relay import bound_socket
from tests.fakes.apiserver import Json
from tests.fakes.live_server import LiveServer
from tests.lab.namespace import Namespace
from tests.lab.process import Process
from tests.lab.waiting import wait_until

from .cluster import CLUSTER_CIDR_FLAG, FLAGS, PYPROXY
from .kernel_state import state_of
from .modes import IS_GUEST, MODES, NFTABLES, Mode
from .objects import endpoint_slice, node, port, service

CHANGES_PER_SECOND = 200
SHORT_SECONDS, LONG_SECONDS = 10.0, 1800.0
SERVICES = 500
PODS = 2000
NODE_FAILURE_SECONDS = 10.0
"""Every ten seconds all endpoints of one of 20 nodes disappear, and those of another return."""
NODES = 20
IDLE_SECONDS = 300.0
IDLE_SHARE = 0.001
"""Of one core."""
GROWTH_BYTES = 2 << 20
"""More than the noise of the allocator."""
CAUGHT_UP_SECONDS = 60.0
LOOK_SECONDS = 0.5
SETTLE_SECONDS = 10.0
SPARE_DESCRIPTORS = 6
"""A program that runs during a look has pipes and a pidfd."""
SPARE_THREADS = 2


class Cluster:
    """The objects of a cluster that changes."""

    def __init__(self, server: LiveServer, seed: int) -> None:
        self._server = server
        self._random = random.Random(seed)  # noqa: S311 - not for secrets
        self._down = -1
        self.changes = 0
        server.put(node("node1"))
        server.put(*(item for number in range(SERVICES) for item in self._made(number)))

    def _made(self, number: int) -> list[Json]:
        extra = {0: {"sessionAffinity": "ClientIP"}, 1: {"type": "NodePort"}}.get(number % 10, {})
        ports = port(80, node_port=30000 + number if number % 10 == 1 else 0), port(53, "UDP", name="dns")
        ports[0]["name"] = "web"
        ips = [f"10.96.{100 + number // 250}.{1 + number % 250}"]
        usual = {"clusterIP": ips[0], "clusterIPs": ips, "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack"}
        return [service(f"s{number}", 1, *ports, **usual, **extra), self._slice(number)]

    def _slice(self, number: int) -> Json:
        pods = [self._random.randrange(PODS) for _ in range(self._random.randint(1, 5))]
        addresses = [f"10.244.{pod // 250}.{1 + pod % 250}" for pod in sorted({*pods}) if pod % NODES != self._down]
        targets = [{"name": "web", "port": 8080, "protocol": "TCP"}, {"name": "dns", "port": 5353, "protocol": "UDP"}]
        return endpoint_slice(f"s{number}", "IPv4", addresses, targets)

    def churn(self, seconds: float) -> None:
        """Make changes at the rate for some time: rollouts, Services that come and go, and node failures."""
        started, failed_at = time.monotonic(), 0.0
        while (elapsed := time.monotonic() - started) < seconds:
            if elapsed - failed_at > NODE_FAILURE_SECONDS:
                failed_at, self._down = elapsed, self._random.randrange(NODES)
            due = int(elapsed * CHANGES_PER_SECOND) - self.changes
            self._change(min(due, CHANGES_PER_SECOND))
            time.sleep(1 / CHANGES_PER_SECOND)

    def _change(self, count: int) -> None:
        for number in self._random.choices(range(SERVICES), k=count):
            if self._random.random() < 0.05:
                self._server.delete(*self._made(number))
                self._server.put(*self._made(number))
            else:
                self._server.put(self._slice(number))
            self.changes += 1


@dataclass
class Usage:
    """What a process has used at each look."""

    pid: int
    memory: list[int] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)

    def look(self) -> None:
        """Record what it uses now."""
        proc = Path(f"/proc/{self.pid}")
        self.memory.append(int((proc / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
        self.descriptors.append(len(list((proc / "fd").iterdir())))
        self.threads.append(len(list((proc / "task").iterdir())))

    def cpu_seconds(self) -> float:
        """Return the CPU time of the process and its children."""
        fields = (Path(f"/proc/{self.pid}/stat")).read_text().rpartition(") ")[2].split()
        # The CPU clock of the process is more exact than the ticks in the file, which has the children.
        return time.clock_gettime(~self.pid << 3 | 2) + sum(map(int, fields[13:15])) / os.sysconf("SC_CLK_TCK")


def thirds(values: list[int]) -> tuple[int, int]:
    """Return the highest values of the second and of the last third."""
    size = len(values) // 3
    return max(values[size : 2 * size]), max(values[-size:])


@contextmanager
def agent(mode: Mode, namespace: Namespace, port_number: int, directory: Path) -> Iterator[Process]:
    """Run an agent in a namespace; entered after its first sync."""
    server = f"--master=http://127.0.0.1:{port_number}"
    own = (server, "--hostname-override=node1", *mode.flags, *FLAGS, CLUSTER_CIDR_FLAG)
    files = directory / namespace.name
    process = Process(namespace, [PYPROXY, "run", *own], files=files, env={"XTABLES_LOCKFILE": f"{files}.lock"})
    try:
        process.wait_until_ready()
        yield process
    finally:
        process.close()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Provide the modes, all only in a long run, and the time in each."""
    if "soaked" in metafunc.fixturenames:
        is_long = metafunc.config.getoption("--long")
        seconds = metafunc.config.getoption("--soak-seconds") or (LONG_SECONDS if is_long else SHORT_SECONDS)
        modes = [each for each in MODES if is_long or each is NFTABLES or IS_GUEST]
        metafunc.parametrize(("soaked", "seconds", "is_long"), [(each, seconds, is_long) for each in modes], ids=str)


@pytest.mark.usefixtures("needs_root")
def test_soak(soaked: Mode, seconds: float, is_long: bool, tmp_path: Path) -> None:  # noqa: FBT001
    """Memory, descriptors and threads do not grow after the first third, and the rules are those of a fresh agent."""
    with ExitStack() as stack:
        namespaces = [Namespace(stack.enter_context(fresh_namespace())) for _ in range(2)]
        sockets = [stack.enter_context(call_inside(each.name, bound_socket)) for each in namespaces]
        server = stack.enter_context(LiveServer(*sockets))
        cluster = Cluster(server, seed=len(soaked.name))
        own, other = ((each, sock.getsockname()[1], tmp_path) for each, sock in zip(namespaces, sockets, strict=True))
        usage = Usage(stack.enter_context(agent(soaked, *own)).pid)
        cpu_before, started = usage.cpu_seconds(), time.monotonic()
        churn = threading.Thread(target=cluster.churn, args=(seconds,))
        churn.start()
        while churn.is_alive():
            usage.look()
            churn.join(LOOK_SECONDS)
        share = (usage.cpu_seconds() - cpu_before) / (time.monotonic() - started)
        with agent(soaked, *other):
            fresh = state_of(soaked, lambda *argv: namespaces[1].run(argv))
        wait_until(
            lambda: fresh == state_of(soaked, lambda *argv: namespaces[0].run(argv)),
            "the rules of a fresh agent",
            CAUGHT_UP_SECONDS,
            poll_seconds=0.2,
        )
        idle = idle_share(usage) if is_long else 0.0

    memory = thirds(usage.memory)
    print(
        f"{soaked}: {cluster.changes} changes in {seconds:g} s, {share:.1%} of a core; memory {memory[0] / 1e6:.1f} MB in"
        f" the second third, {memory[1] / 1e6:.1f} MB in the last, descriptors {thirds(usage.descriptors)}, threads"
        f" {thirds(usage.threads)}; {len(fresh)} lines of rules; idle {idle:.3%} of a core"
    )
    assert memory[1] <= memory[0] + GROWTH_BYTES
    assert thirds(usage.descriptors)[1] <= thirds(usage.descriptors)[0] + SPARE_DESCRIPTORS
    assert thirds(usage.threads)[1] <= thirds(usage.threads)[0] + SPARE_THREADS
    assert idle < IDLE_SHARE


def idle_share(usage: Usage) -> float:
    """Return the share of a core that an agent uses when nothing happens."""
    time.sleep(SETTLE_SECONDS)
    before = usage.cpu_seconds()
    time.sleep(IDLE_SECONDS)
    return (usage.cpu_seconds() - before) / IDLE_SECONDS
