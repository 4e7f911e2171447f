"""A lab with the agent on each node; all agents follow one directory of manifests.

The agent is the installed program, run as a user runs it. Tests wait for rules in the kernel, never for a fixed time.
"""

from __future__ import annotations

import itertools
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tests.lab import CLUSTER_CIDRS, Host, Lab, Outcome, Process, probe_all
from tests.lab.waiting import wait_until

from .modes import IS_GUEST, Mode
from .objects import FAMILIES, PLAN, PORT, SECOND_PORT, JsonObject, cluster_ips, endpoint_slice, node
from .table import Row

PYPROXY = str(Path(sys.executable).with_name("pyproxy"))
"""Far longer than any change takes; exceeded only after a bug."""
ANSWER_SECONDS = 4.0
"""Time-out of probes: long, because these suites test who answers, not how fast, and the machine may be busy."""
BURST = 50 if IS_GUEST else 200
"""Concurrent probes. Their time-outs start together, so a slow machine must be able to answer the last in time."""
CLUSTER_CIDR_FLAG = f"--cluster-cidr={','.join(map(str, CLUSTER_CIDRS))}"
FLAGS = (
    # Do not change settings of the whole machine.
    "--conntrack-max-per-core=0",
    "--conntrack-tcp-timeout-established=0",
    "--conntrack-tcp-timeout-close-wait=0",
    "--metrics-bind-address=",
    "--oom-score-adj=0",
    "--control-socket=",
    "-v=4",
)
_MARK_NUMBER = 250
_MARK_IPS = ("198.51.100.1", "2001:db8:51:100::1")
_marks = itertools.count(10_000)
"""Ports of the marker Services: all with equally many digits, so that none is a prefix of another."""


class Cluster:
    """A lab whose pods serve their ports, and the agents on its nodes."""

    def __init__(self, lab: Lab, mode: Mode, directory: Path) -> None:
        """Use a running lab and an empty directory; `start` starts the agents."""
        self.lab = lab
        self.mode = mode
        self.agents: dict[str, Process] = {}
        self.flags: tuple[str, ...] = ()
        self._directory = directory
        self._objects: dict[tuple[str, str], JsonObject] = {}
        self._observed: dict[Row, set[str]] = {}
        """Observed results of the rows of whole tables since the last change."""
        self.manifests = directory / "manifests"
        self.manifests.mkdir()
        self.put(*(node(planned.name) for planned in lab.plan.nodes))
        for pod in lab.pods:
            pod.serve(tcp=[PORT, SECOND_PORT], udp=[PORT, SECOND_PORT], sctp=[PORT, SECOND_PORT])

    # -- agents

    def start(self, *flags: str, env: Mapping[str, str] | None = None) -> None:
        """Start the agent on every node, and wait until each has done its first sync."""
        self.flags = flags
        self._observed.clear()
        for host in self.lab.nodes:
            self.agents[host.name] = host.start(*self.command(host, *flags), env=self.env(host, env))
        for agent in self.agents.values():
            agent.wait_until_ready()

    def command(self, host: Host, *flags: str) -> list[str]:
        """Return the command line of the agent on a node."""
        own = (f"--manifests={self.manifests}", f"--hostname-override={host.name}")
        socket = f"--control-socket={self.control_socket(host)}"
        return [PYPROXY, "run", *own, *self.mode.flags, *FLAGS, socket, *(flags or (CLUSTER_CIDR_FLAG,))]

    def control_socket(self, host: Host) -> Path:
        """Return the path of the control socket of the agent of a node."""
        return self._directory / f"{host.name}.sock"

    def env(self, host: Host, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return the environment of programs on a node: each node has its own xtables lock."""
        return {"XTABLES_LOCKFILE": str(self._directory / f"{host.name}.lock"), **(more or {})}

    def stop(self) -> None:
        """Stop the agents, as systemd does."""
        self._observed.clear()
        for agent in self.agents.values():
            agent.signal(15)
        for agent in self.agents.values():
            agent.wait()
        self.agents.clear()

    def restart(self, *flags: str, env: Mapping[str, str] | None = None) -> None:
        """Restart the agents with these flags and this environment."""
        self.stop()
        self.start(*flags, env=env)

    @contextmanager
    def keeping_flags(self) -> Iterator[None]:
        """On exit, restart the agents with the flags that they have now."""
        flags = self.flags
        yield
        self.restart(*flags)

    # -- objects

    def put(self, *objects: JsonObject) -> None:
        """Add objects, or replace those of the same kind and name, and wait until they are programmed."""
        self._objects |= {_key(item): item for item in objects}
        self._write()

    def remove(self, *objects: JsonObject) -> None:
        """Remove objects, and wait until their rules are gone."""
        for item in objects:
            self._objects.pop(_key(item), None)
        self._write()

    def exchange(self, gone: Iterable[JsonObject], come: Iterable[JsonObject]) -> None:
        """Remove objects and add new ones in one change, and wait until it is programmed."""
        for item in gone:
            self._objects.pop(_key(item), None)
        self.put(*come)

    @contextmanager
    def having(self, *objects: JsonObject) -> Iterator[None]:
        """Add these objects, and remove them on exit."""
        self.put(*objects)
        try:
            yield
        finally:
            self.remove(*objects)

    def write(self, objects: Iterable[JsonObject]) -> None:
        """Write objects to the directory, as one change."""
        self._observed.clear()
        new = self._directory / "objects.json"
        new.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)}))
        new.rename(self.manifests / "objects.json")

    def _write(self) -> None:
        """Write the objects with a marker: a Service whose rules are programmed with, or after, all other objects."""
        number = next(_marks)
        self.write([*self._objects.values(), *_mark(number, "UDP" if self.mode.removes_last else "TCP")])
        if self.agents:
            self.wait_for_rules([pattern for ip in _MARK_IPS for pattern in self._mark_patterns(ip, number)])

    def _mark_patterns(self, ip: str, number: int) -> Iterator[str]:
        """Yield patterns of rules that include a marker; in modes that remove last, also the absence of earlier markers."""
        yield rf"{re.escape(ip)}(\]?:| \. ){number}\b"
        if self.mode.removes_last:
            yield rf"\A(?![\s\S]*{re.escape(ip)}\]?:(?!{number}\b))"

    def wait_for_rules(self, patterns: Sequence[str], *hosts: Host) -> None:
        """Wait until the rules of these nodes, or of every node with an agent, match all these patterns."""
        for host in hosts or [self.lab[name] for name in self.agents]:
            wait_until(partial(self._has_rules, host, patterns), f"rules with {patterns} on {host.name}")

    def _has_rules(self, host: Host, patterns: Sequence[str]) -> bool:
        rules = self.rules(host)
        return all(re.search(pattern, rules) for pattern in patterns)

    # -- the kernel

    def rules(self, host: Host) -> str:
        """Return all rules of a node, from the kernel tables of the mode."""
        return "".join(host.run(*command, env=self.env(host)) for command in self.mode.dumps)

    def run(self, host: Host, *argv: str, stdin: str = "") -> str:
        """Run a command on a node, in the environment of its agent."""
        return host.run(*argv, stdin=stdin, env=self.env(host))

    # -- packets

    def expected(self, row: Row) -> set[str]:
        """Return the expected results of a row in this mode; each of them occurs."""
        return row.expected(unserved=self.mode.unserved, unclaimed=self.mode.unclaimed)

    def observe(self, row: Row) -> set[str]:
        """Send the packets of a row and return the results."""
        return self._send([row])[row]

    def observed(self, row: Row) -> set[str]:
        """Return the results of a row; the packets of its whole table are sent together, once after each change."""
        if row not in self._observed:
            self._observed |= self._send(row.table)
        return self._observed[row]

    def _send(self, rows: Iterable[Row]) -> dict[Row, set[str]]:
        flows = [(row, probe) for row in rows for probe in row.probes()]
        outcomes: dict[Row, list[Outcome]] = {}
        for burst in (flows[start : start + BURST] for start in range(0, len(flows), BURST)):
            answers = probe_all([(self.lab[row.source], probe) for row, probe in burst])
            for (row, _), outcome in zip(burst, answers, strict=True):
                outcomes.setdefault(row, []).append(outcome)
        return {row: row.observed(found) for row, found in outcomes.items()}


def _key(item: JsonObject) -> tuple[str, str]:
    return item["kind"], item["metadata"]["name"]


@contextmanager
def running_cluster(mode: Mode, directory: Path) -> Iterator[Cluster]:
    """Run a lab with agents that use the directory."""
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
    target = {"name": "", "port": number, "protocol": protocol}
    return found + [
        endpoint_slice("mark", family, [ip], [target], suffix=family.lower())
        for family, ip in zip(FAMILIES, _MARK_IPS, strict=True)
    ]
