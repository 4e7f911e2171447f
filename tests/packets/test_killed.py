"""An agent that is killed while it writes: no connection is lost, and the next agent leaves what a fresh one would."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.lab import Host, Process
from tests.lab.waiting import wait_until

from .cluster import PYPROXY, Cluster
from .dying_agent import Countdown
from .kernel_state import NODES, kernel_state
from .objects import JsonObject, ingress, service, slices
from .traffic import MOVING, OBJECTS, PORTS, traffic

KILLS = {"iptables-legacy": 3, "iptables-nft": 3, "nftables": 4}
LONG_KILLS = 67
"""In each mode."""
PROGRAMMED_SECONDS = 60.0
POLL_SECONDS = 0.2
"""A look at all rules takes some time of a CPU."""


def objects(which: int) -> list[JsonObject]:
    """Return one of two sets of objects, between which entries of all kinds change."""
    items = [*NODES, *OBJECTS, *slices(MOVING, ("pod1-2", "pod2-2")[which])]
    local = {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "ingress": ingress(160 + which)}
    ranges = ["172.18.0.0/24", f"192.0.2.{which}/32", "fd00:172:18::/64"]
    pins = {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60 + which}}}
    balanced = service("local", 160, *PORTS, loadBalancerSourceRanges=ranges, **local)
    pinned = service("pinned", 161, *PORTS, **pins)
    waking = service("waking", 162, *PORTS)
    items += [balanced, *slices(balanced, *("pod1-1", "pod1-3")[which:]), pinned, *slices(pinned, "pod1-1", "pod2-3")]
    items += [waking, *(slices(waking, "pod2-1") if which else ())]
    for number in range(170 + 10 * which, 185 + 10 * which):
        bulk = service(f"bulk-{number}", number, *PORTS)
        items += [bulk, *slices(bulk, *("pod1-1", "pod1-2", "pod1-3", "pod2-1")[: 1 + (number + which) % 4])]
    return items


class Node:
    """The first node: agents that die there, and the states that fresh agents have made."""

    def __init__(self, cluster: Cluster, directory: Path) -> None:
        self._cluster = cluster
        self._host: Host = cluster.lab["node1"]
        self._countdown = Countdown(directory / "countdown")
        self._program = (sys.executable, str(Path(__file__).with_name("dying_agent.py")), str(directory / "countdown"))
        self._agent: Process | None = None
        self._fresh: dict[int, list[str]] = {}
        self.history: list[str] = []
        """What was killed, and where, for failure messages."""

    def prepare(self) -> tuple[int, int]:
        """Record the states of fresh agents, and return the number of steps of a start and of a change."""
        for which in (1, 0):
            self.kill()
            self._cluster.run(self._host, PYPROXY, "cleanup")
            self._cluster.write(objects(which))
            self._start()
            self._fresh[which] = kernel_state(self._cluster, self._host)
        assert self._fresh[0] != self._fresh[1]
        steps = self._countdown.steps
        self._countdown.begin()
        self._cluster.write(objects(1))
        self._wait_for(1)
        return steps, self._countdown.steps

    def _start(self) -> None:
        self._countdown.begin()
        self._launch().wait_until_ready()

    def _launch(self) -> Process:
        _, *arguments = self._cluster.command(self._host)
        self._agent = self._host.start(*self._program, *arguments, env=self._cluster.env(self._host))
        return self._agent

    def kill(self) -> None:
        """Kill the agent, if it runs."""
        if self._agent is not None:
            self._agent.kill()
            self._agent = None

    def die(self, which: int, step: int, *, starting: bool, with_children: bool) -> None:
        """Change the objects, and have the agent die at a step of the change, or of the start that follows it."""
        self.history.append(f"{'start' if starting else 'change'}, step {step}{', with children' * with_children}")
        if starting:
            self.kill()
        self._countdown.begin(step, with_children=with_children)
        self._cluster.write(objects(which))
        agent = self._launch() if starting else self._agent
        assert agent
        # The number of steps varies a little: an agent that has survived is killed by `recover`.
        wait_until(
            lambda: not agent.is_running or self._has(which),
            "the death of the agent, or a programmed change",
            PROGRAMMED_SECONDS,
            poll_seconds=POLL_SECONDS,
        )

    def recover(self, which: int) -> None:
        """Start an agent that lives, and wait until the state is that of a fresh agent."""
        self.kill()
        self._start()
        self._wait_for(which)

    def _wait_for(self, which: int) -> None:
        try:
            wait_until(lambda: self._has(which), timeout_seconds=PROGRAMMED_SECONDS, poll_seconds=POLL_SECONDS)
        except TimeoutError:
            present, wanted = {*kernel_state(self._cluster, self._host)}, {*self._fresh[which]}
            message = f"after {self.history[-2:]}: surplus {present - wanted}, missing {wanted - present}"
            raise AssertionError(message) from None

    def _has(self, which: int) -> bool:
        return self._fresh[which] == kernel_state(self._cluster, self._host)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Provide whether the run is long."""
    if "is_long" in metafunc.fixturenames:
        metafunc.parametrize("is_long", [metafunc.config.getoption("--long")])


def test_kill_at_any_step(cluster: Cluster, tmp_path: Path, is_long: bool) -> None:  # noqa: FBT001
    """No held and no new connection fails, and after each kill the next agent leaves the state of a fresh one."""
    kills = LONG_KILLS if is_long else KILLS.get(cluster.mode.name, 2)
    cluster.stop()
    subject = Node(cluster, tmp_path)
    try:
        start, change = subject.prepare()
        with traffic(cluster.lab) as sent:
            for number in range(kills):
                which, starting = number % 2, number % 3 == 2
                # In the middle of equal parts of all steps, so that every run has the same.
                step = max(1, (start if starting else change) * (2 * number + 1) // (2 * kills))
                subject.die(which, step, starting=starting, with_children=number % 2 == 1)
                subject.recover(which)
                assert [] == sent.failures(), subject.history[-2:]
    finally:
        subject.kill()
        cluster.start(*cluster.flags)
        cluster.put()

    print(f"{cluster.mode}: {kills} kills in {start} steps of a start and {change} of a change, {sent}")
    assert [] == sent.failures()
    assert {"pod1-1", "pod2-1", "pod1-2", "pod2-2"} == sent.servers()
