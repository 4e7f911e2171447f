"""Random walks over states of a cluster and proxy modes: the kernel ends as after a start on a node without rules."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.lab.namespace import Namespace, create, new_prefix, remove
from tests.lab.process import Process
from tests.lab.waiting import wait_until
from tests.properties.as_json import objects
from tests.properties.strategies import Cluster, clusters

from .cluster import CLUSTER_CIDR_FLAG, FLAGS, PYPROXY
from .modes import HAS_IPVS, IPVS, IPVS_NFT, LEGACY, NFT, NFTABLES, Mode
from .objects import node, node_plan

MODES = (IPVS, LEGACY, IPVS_NFT, NFTABLES, IPVS) if HAS_IPVS else (LEGACY, NFT, NFTABLES)
STEPS = 6
FEW = settings(max_examples=max(1, settings().max_examples // 100), phases=(Phase.generate,))
"""A step starts several processes, and shrinking a walk would take hours."""
_LISTS = [
    *(f"{stem}-{variant}-save" for stem in ("iptables", "ip6tables") for variant in ("legacy", "nft")),
    # `nft` fails if the table does not exist.
    *(f"nft list table {family} pyproxy || true" for family in ("ip", "ip6")),
    *(
        (
            "ipset -sorted save",
            "ipvsadm -Sn",
            *(f"ip -{number} route show table local proto static" for number in (4, 6)),
        )
        if HAS_IPVS
        else ()
    ),
]
_COMMON = re.compile(
    r"(?m)^(?:#.*|\*\w+|COMMIT|:[A-Z]+ \w+ .*|.*KUBE-FIREWALL.*)$|\[\d+:\d+\]|hashsize \d+|bucketsize \d+ initval \w+"
)
"""What may differ: comments, empty tables and their own chains, counters, random numbers, and the chain that the kubelet
uses as well, which stays in every mode."""
_files = count()

Walk = list[tuple[Mode, Cluster]]


@st.composite
def walks(draw: st.DrawFn) -> Walk:
    """Draw states of a cluster, each with a mode; every mode occurs."""
    modes = draw(st.permutations(MODES)) + draw(st.permutations(MODES))
    return [(mode, draw(clusters(contested=False))) for mode in modes[:STEPS]]


class Node:
    """A network namespace with the addresses of a node, and at most one agent."""

    def __init__(self, namespace: Namespace, folder: Path) -> None:
        self._namespace = namespace
        self._folder = folder
        self._manifests = folder / f"{namespace.name}.json"
        self._env = {"XTABLES_LOCKFILE": str(folder / f"{namespace.name}.lock")}
        self._agent: Process | None = None
        self._mode: Mode | None = None
        self.run("ip link set lo up")
        for address in node_plan("node1").addresses:
            self.run(f"ip address add {address} dev lo")

    def run(self, command: str) -> str:
        """Run a command of a shell and return its output."""
        return self._namespace.run(("sh", "-c", command), env=self._env)

    def go_to(self, mode: Mode, cluster: Cluster) -> None:
        """Let the agent program a state in a mode."""
        new = self._folder / f"{next(_files)}.new"
        items = [node("node1"), *objects(cluster)]
        new.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
        new.rename(self._manifests)
        if mode is not self._mode:
            self.stop()
            command = (PYPROXY, "run", f"--manifests={self._manifests}", "--hostname-override=node1", *mode.flags)
            files = self._folder / f"{next(_files)}"
            self._agent = Process(self._namespace, (*command, *FLAGS, CLUSTER_CIDR_FLAG), files=files, env=self._env)
            self._agent.wait_until_ready()
            self._mode = mode

    def stop(self) -> None:
        """Stop the agent; its rules stay."""
        if self._agent is not None:
            self._agent.signal(15)
            self._agent.wait()
            self._agent.close()
        self._agent = self._mode = None

    def rules(self) -> list[str]:
        """Return the rules of all modes, in an order that does not depend on when they were written."""
        text = _COMMON.sub("", self.run("; ".join(_LISTS)))
        return sorted(filter(None, map(str.strip, re.split(r"[\n,{}]", text))))


@contextmanager
def nodes(folder: Path, *names: str) -> Iterator[list[Node]]:
    """Provide nodes without rules."""
    prefix = new_prefix()
    made = [Node(namespace, folder) for namespace in create([f"{prefix}{name}" for name in names])]
    try:
        yield made
    finally:
        for each in made:
            each.stop()
        remove(prefix)


@pytest.mark.usefixtures("needs_root")
@FEW
@given(walk=walks())
def test_every_path_ends_where_a_fresh_start_ends(tmp_path_factory: pytest.TempPathFactory, walk: Walk) -> None:
    """After each step a node has the rules of a node on which the agent has just started, and no rule of another mode."""
    folder = tmp_path_factory.mktemp("walk")
    names = [f"fresh{number}" for number in range(len(walk))]
    with nodes(folder, "walker", *names) as (walker, *fresh):
        for (mode, cluster), other in zip(walk, fresh, strict=True):
            walker.go_to(mode, cluster)
            other.go_to(mode, cluster)
            expected = other.rules()
            other.stop()
            with suppress(TimeoutError):
                wait_until(lambda expected=expected: expected == walker.rules())  # type: ignore[misc]
            found = walker.rules()
            missing, excess = Counter(expected) - Counter(found), Counter(found) - Counter(expected)
            assert (mode.name, [], []) == (mode.name, sorted(missing), sorted(excess))
