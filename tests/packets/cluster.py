"""A lab with the agent on each of its nodes, told what to do by one directory of manifests.

Law: the agent is the installed program, run as a user runs it. What tests wait for is the kernel's rules, never a time.
"""

from __future__ import annotations

import itertools
import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tests.lab import CLUSTER_CIDRS, Host, Lab, Outcome, Process, probe_all

from .modes import IS_GUEST, Mode
from .objects import PLAN, PORT, SECOND_PORT, JsonObject, cluster_ips, node
from .table import Row

PYPROXY = str(Path(sys.executable).with_name("pyproxy"))
CHANGE_SECONDS = 20.0
"""Far longer than any change takes: only a fault exceeds it."""
ANSWER_SECONDS = 4.0
"""How long probes wait for an answer: what these suites ask is who answers, on however busy a machine."""
BURST = 50 if IS_GUEST else 200
"""Probes at once. All start their time-outs together, so a slow machine must be able to answer the last in time."""
CLUSTER_CIDR_FLAG = f"--cluster-cidr={','.join(map(str, CLUSTER_CIDRS))}"
FLAGS = (
    # What the agent would set for the whole machine is left alone.
    "--conntrack-max-per-core=0",
    "--conntrack-tcp-timeout-established=0",
    "--conntrack-tcp-timeout-close-wait=0",
    "--metrics-bind-address=",
    "--oom-score-adj=0",
    "-v=4",
)
_MARK_NUMBER = 250
_MARK_IPS = ("198.51.100.1", "2001:db8:51:100::1")
_marks = itertools.count(10_000)
"""Ports of the marks of `catch_up`: of one width, so that none is the beginning of another."""


class Cluster:
    """A lab whose pods answer on their ports, and the agents of its nodes."""

    def __init__(self, lab: Lab, mode: Mode, directory: Path) -> None:
        """Take a running lab and a directory of its own; `start` starts the agents."""
        self.lab = lab
        self.mode = mode
        self.agents: dict[str, Process] = {}
        self.flags: tuple[str, ...] = ()
        self._directory = directory
        self._objects: dict[tuple[str, str], JsonObject] = {}
        self._met: dict[Row, set[str]] = {}
        """What the rows of whole tables met since the last change."""
        self.manifests = directory / "manifests"
        self.manifests.mkdir()
        self.put(*(node(planned.name) for planned in lab.plan.nodes))
        for pod in lab.pods:
            pod.serve(tcp=[PORT, SECOND_PORT], udp=[PORT, SECOND_PORT], sctp=[PORT, SECOND_PORT])

    # -- agents

    def start(self, *flags: str, env: Mapping[str, str] | None = None) -> None:
        """Start the agent on every node and wait until each has done its first sync."""
        self.flags = flags
        self._met.clear()
        for host in self.lab.nodes:
            self.agents[host.name] = host.start(*self.command(host, *flags), env=self.env(host, env))
        for agent in self.agents.values():
            agent.wait_until_ready()

    def command(self, host: Host, *flags: str) -> list[str]:
        """Return the command line of the agent of a node."""
        own = (f"--manifests={self.manifests}", f"--hostname-override={host.name}")
        return [PYPROXY, "run", *own, *self.mode.flags, *FLAGS, *(flags or (CLUSTER_CIDR_FLAG,))]

    def env(self, host: Host, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return the environment for programs on a node: a lock of iptables that no other node waits for."""
        return {"XTABLES_LOCKFILE": str(self._directory / f"{host.name}.lock"), **(more or {})}

    def stop(self) -> None:
        """End the agents, as systemd does."""
        self._met.clear()
        for agent in self.agents.values():
            agent.signal(15)
        for agent in self.agents.values():
            agent.wait()
        self.agents.clear()

    def restart(self, *flags: str, env: Mapping[str, str] | None = None) -> None:
        """Start the agents again, with these flags and this environment."""
        self.stop()
        self.start(*flags, env=env)

    @contextmanager
    def keeping_flags(self) -> Iterator[None]:
        """Let agents be restarted with any flags, and in the end with those that they have now."""
        flags = self.flags
        yield
        self.restart(*flags)

    # -- objects

    def put(self, *objects: JsonObject) -> None:
        """Add objects, or replace those of the same kind and name, and wait until the kernel has them."""
        self._objects |= {_key(item): item for item in objects}
        self._write()

    def remove(self, *objects: JsonObject) -> None:
        """Take objects away, and wait until the kernel has forgotten them."""
        for item in objects:
            self._objects.pop(_key(item), None)
        self._write()

    def exchange(self, gone: Iterable[JsonObject], come: Iterable[JsonObject]) -> None:
        """Take objects away and put others in one change, and wait until the kernel has it."""
        for item in gone:
            self._objects.pop(_key(item), None)
        self.put(*come)

    @contextmanager
    def having(self, *objects: JsonObject) -> Iterator[None]:
        """Have these objects for a while."""
        self.put(*objects)
        try:
            yield
        finally:
            self.remove(*objects)

    def write(self, objects: Iterable[JsonObject]) -> None:
        """Put objects into the directory, all at once."""
        self._met.clear()
        new = self._directory / "objects.json"
        new.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)}))
        new.rename(self.manifests / "objects.json")

    def _write(self) -> None:
        """Write the objects with a mark: a Service whose rules can only come with, or after, all others."""
        number = next(_marks)
        self.write([*self._objects.values(), *_mark(number, "UDP" if self.mode.removes_last else "TCP")])
        if self.agents:
            self.wait_for_rules([pattern for ip in _MARK_IPS for pattern in self._mark_patterns(ip, number)])

    def _mark_patterns(self, ip: str, number: int) -> Iterator[str]:
        """Yield what rules hold that are up to a mark: the mark, and where it matters no mark before."""
        yield rf"{re.escape(ip)}(\]?:| \. ){number}\b"
        if self.mode.removes_last:
            yield rf"\A(?![\s\S]*{re.escape(ip)}\]?:(?!{number}\b))"

    def wait_for_rules(self, patterns: Sequence[str], *hosts: Host) -> None:
        """Wait until the rules of these nodes, or of every node with an agent, hold all these patterns."""
        for host in hosts or [self.lab[name] for name in self.agents]:
            wait_until(partial(self._has_rules, host, patterns), f"rules with {patterns} on {host.name}")

    def _has_rules(self, host: Host, patterns: Sequence[str]) -> bool:
        rules = self.rules(host)
        return all(re.search(pattern, rules) for pattern in patterns)

    # -- the kernel

    def rules(self, host: Host) -> str:
        """Return all the rules of a node, in the mode's kernel tables."""
        return "".join(host.run(*command, env=self.env(host)) for command in self.mode.dumps)

    def run(self, host: Host, *argv: str, stdin: str = "") -> str:
        """Run a command on a node beside the agent's."""
        return host.run(*argv, stdin=stdin, env=self.env(host))

    # -- packets

    def expected(self, row: Row) -> set[str]:
        """Return what the packets of a row shall meet in this mode, in words; each of it is met."""
        return row.expected(unserved=self.mode.unserved, unclaimed=self.mode.unclaimed)

    def meet(self, row: Row) -> set[str]:
        """Send the packets of a row and say what they met."""
        return self._meet([row])[row]

    def met(self, row: Row) -> set[str]:
        """Say what the packets of a row met, which are sent with those of its whole table and once after a change."""
        if row not in self._met:
            self._met |= self._meet(row.table)
        return self._met[row]

    def _meet(self, rows: Iterable[Row]) -> dict[Row, set[str]]:
        flows = [(row, probe) for row in rows for probe in row.probes()]
        outcomes: dict[Row, list[Outcome]] = {}
        for burst in (flows[start : start + BURST] for start in range(0, len(flows), BURST)):
            answers = probe_all([(self.lab[row.source], probe) for row, probe in burst])
            for (row, _), outcome in zip(burst, answers, strict=True):
                outcomes.setdefault(row, []).append(outcome)
        return {row: row.met(met) for row, met in outcomes.items()}


def wait_until(condition: Callable[[], bool], what: str, seconds: float = CHANGE_SECONDS) -> None:
    """Ask again and again until the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"


def _key(item: JsonObject) -> tuple[str, str]:
    return item["kind"], item["metadata"]["name"]


@contextmanager
def running_cluster(mode: Mode, directory: Path) -> Iterator[Cluster]:
    """Have a lab with running agents, which use the directory."""
    with Lab(PLAN.shape, timeout_seconds=ANSWER_SECONDS) as lab:
        cluster = Cluster(lab, mode, directory)
        cluster.start()
        yield cluster
        cluster.stop()


def _mark(number: int, protocol: str) -> list[JsonObject]:
    ips = cluster_ips(_MARK_NUMBER)
    spec = {"clusterIP": ips[0], "clusterIPs": ips, "ports": [{"port": 9, "protocol": protocol}]}
    found: list[JsonObject] = [
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "mark", "namespace": "default"}, "spec": spec}
    ]
    for family, ip in zip(("IPv4", "IPv6"), _MARK_IPS, strict=True):
        labels = {"kubernetes.io/service-name": "mark"}
        found.append(
            {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {"name": f"mark-{family.lower()}", "namespace": "default", "labels": labels},
                "addressType": family,
                "endpoints": [{"addresses": [ip]}],
                "ports": [{"name": "", "port": number, "protocol": protocol}],
            }
        )
    return found
