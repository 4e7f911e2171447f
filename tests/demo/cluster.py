"""The cluster of the demo: a lab whose pods serve, and the real agent on each node.

Everything that the cluster creates is removed when it is closed, also after an error.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import yaml

from tests.lab import CLUSTER_CIDRS, Host, Lab, Process
from tests.lab.namespace import new_prefix

EXAMPLES = Path(__file__).parents[2] / "examples"
PYPROXY = Path(sys.executable).with_name("pyproxy")

WEB_PORT = 8080
NEW_WEB_PORT = 8081
"""A further port of the pods of node2: see `examples/named-ports.yaml`."""
API_PORT = 8090
METRICS_PORT = 9100
DNS_PORT = 5353
DIAMETER_PORT = 3868
DATABASE_PORT = 5432

TIMEOUT_SECONDS = 0.9
"""Time-out of requests: shorter than the second after which the kernel retransmits a SYN, so that no loss is hidden."""
SHOWN_LOG_LINES = 20


class Cluster:
    """Two nodes with agents that follow a directory of manifests; a context manager."""

    def __init__(self, mode: str) -> None:
        """Plan a cluster whose agents run in this proxy mode; entering builds it."""
        self._mode = mode
        self._undo = ExitStack()
        self.lab = Lab(timeout_seconds=TIMEOUT_SECONDS)
        self.agents: list[Process] = []
        self.directory = Path()
        """Directory for files of the demo; removed at the end."""

    @property
    def manifests(self) -> Path:
        """The directory that the agents follow: a copy of `examples/`."""
        return self.directory / "manifests"

    def __enter__(self) -> Self:
        """Build the cluster; returns after the first sync of the agents."""
        with ExitStack() as undo:
            undo.enter_context(self.lab)
            # A name like those of the lab's own files, so that the next lab removes it if this run is killed.
            self.directory = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix=new_prefix())))
            shutil.copytree(EXAMPLES, self.manifests)
            self._serve()
            self._start_agents()
            self._undo = undo.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Remove the cluster."""
        self._undo.close()

    def rewrite(self, file: str, kind: str, fields: Mapping[str, object]) -> None:
        """Set top-level fields of the objects of a kind in a manifest; the file is replaced atomically."""
        path = self.manifests / file
        objects = list(yaml.safe_load_all(path.read_text()))
        for changed in objects:
            if changed["kind"] == kind:
                changed.update(fields)
        new = self.directory / file
        new.write_text(yaml.safe_dump_all(objects, sort_keys=False))
        new.replace(path)

    def log_tails(self) -> Iterator[tuple[str, str]]:
        """Return the last lines of each agent's log, by node name."""
        for node, agent in zip(self.lab.nodes, self.agents, strict=False):
            yield node.name, "\n".join(agent.stderr.splitlines()[-SHOWN_LOG_LINES:])

    def _serve(self) -> None:
        for pod in self.lab.pods:
            pod.serve(tcp=[WEB_PORT, API_PORT, METRICS_PORT, DNS_PORT], udp=[DNS_PORT], sctp=[DIAMETER_PORT])
        for pod in self.lab.pods_of(self.lab["node2"]):
            pod.serve(tcp=[NEW_WEB_PORT])
        self.lab.database.serve(tcp=[DATABASE_PORT])

    def _start_agents(self) -> None:
        self.agents = [self._start_agent(node) for node in self.lab.nodes]
        for agent in self.agents:
            agent.wait_until_ready()

    def _start_agent(self, node: Host) -> Process:
        flags = {
            "manifests": self.manifests,
            "hostname-override": node.name,
            "proxy-mode": self._mode,
            "cluster-cidr": ",".join(map(str, CLUSTER_CIDRS)),
            # The default of the iptables mode; the nftables mode would use only the first addresses of the nodes.
            "nodeport-addresses": "0.0.0.0/0,::/0",
            # These limits apply to the whole kernel, including the host.
            "conntrack-max-per-core": 0,
            "conntrack-tcp-timeout-established": 0,
            "conntrack-tcp-timeout-close-wait": 0,
            "metrics-bind-address": "",
            "oom-score-adj": 0,
            "control-socket": self.directory / f"{node.name}.sock",
            # The guest kernel, which has IPVS, does not support the other variant.
            **({"iptables-variant": "legacy"} if self._mode == "ipvs" else {}),
        }
        # Each node has its own iptables tables, so the nodes should not share a lock.
        lock = {"XTABLES_LOCKFILE": str(self.directory / f"{node.name}.xtables.lock")}
        return node.start(str(PYPROXY), "run", *(f"--{name}={value}" for name, value in flags.items()), env=lock)
