"""The cluster of the demo: a lab whose pods serve, and the real agent on each node.

Law: what is made here is gone when the cluster is left, whichever way.
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
"""Where the pods of node2 serve too: see `examples/named-ports.yaml`."""
API_PORT = 8090
METRICS_PORT = 9100
DNS_PORT = 5353
DIAMETER_PORT = 3868
DATABASE_PORT = 5432

TIMEOUT_SECONDS = 0.9
"""For every request. Less than the second after which the kernel sends a lost SYN again, so that no loss is hidden."""
SHOWN_LOG_LINES = 20


class Cluster:
    """Two nodes with agents that follow a directory of manifests; a context manager."""

    def __init__(self, mode: str) -> None:
        """Plan a cluster whose agents run in that proxy mode; entering builds it."""
        self._mode = mode
        self._undo = ExitStack()
        self.lab = Lab(timeout_seconds=TIMEOUT_SECONDS)
        self.agents: list[Process] = []
        self.directory = Path()
        """For files of the demo; removed at the end."""

    @property
    def manifests(self) -> Path:
        """The directory that the agents follow: a copy of `examples/`."""
        return self.directory / "manifests"

    def __enter__(self) -> Self:
        """Build it; the agents have done their first sync when this returns."""
        with ExitStack() as undo:
            undo.enter_context(self.lab)
            # Named as the lab names its own files, so that the next lab removes what a killed run has left.
            self.directory = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix=new_prefix())))
            shutil.copytree(EXAMPLES, self.manifests)
            self._serve()
            self._start_agents()
            self._undo = undo.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Take it down."""
        self._undo.close()

    def rewrite(self, file: str, kind: str, fields: Mapping[str, object]) -> None:
        """Set top-level fields of the objects of that kind in a manifest; readers see the old file or the new one."""
        path = self.manifests / file
        objects = list(yaml.safe_load_all(path.read_text()))
        for changed in objects:
            if changed["kind"] == kind:
                changed.update(fields)
        new = self.directory / file
        new.write_text(yaml.safe_dump_all(objects, sort_keys=False))
        new.replace(path)

    def last_words(self) -> Iterator[tuple[str, str]]:
        """Give the end of each agent's log, by the node's name."""
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
            # The default of the iptables mode; the nftables mode would use the nodes' first addresses only.
            "nodeport-addresses": "0.0.0.0/0,::/0",
            # These are limits of the whole kernel, and so the host's.
            "conntrack-max-per-core": 0,
            "conntrack-tcp-timeout-established": 0,
            "conntrack-tcp-timeout-close-wait": 0,
            "metrics-bind-address": "",
            "oom-score-adj": 0,
            # The guest kernel, which has IPVS, takes no rules of the other variant.
            **({"iptables-variant": "legacy"} if self._mode == "ipvs" else {}),
        }
        # The nodes have kernels of their own, as far as iptables goes, so they shall not wait for each other.
        lock = {"XTABLES_LOCKFILE": str(self.directory / f"{node.name}.xtables.lock")}
        return node.start(str(PYPROXY), "run", *(f"--{name}={value}" for name, value in flags.items()), env=lock)
