"""``pyproxy support`` on a node with a running agent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.test_support import files

from .cluster import PYPROXY, Cluster
from .objects import port, service, slices

WEB = service("support-web", 160, port(80, node_port=30160), type="NodePort")


@pytest.fixture(scope="module", autouse=True)
def objects(cluster: Cluster) -> Iterator[None]:
    """Have one Service."""
    with cluster.having(WEB, *slices(WEB, "pod1-1", "pod2-1")):
        yield


def test_files_of_a_running_agent(cluster: Cluster, tmp_path: Path) -> None:
    """Without flags the archive has the agent's flags, objects and Services, and rules that differ in no way from the plan."""
    host = cluster.lab["node1"]
    archive = tmp_path / "made.tar.gz"

    cluster.run(host, PYPROXY, "support", f"--control-socket={cluster.control_socket(host)}", "-o", str(archive))

    found = files(archive)
    agent = cluster.agents["node1"].pid
    assert f"Configuration: flags of the agent, process {agent}\n" in found["INDEX.txt"]
    assert f"\n--manifests={cluster.manifests}\n" in found["agent/command-line.txt"]
    assert "default/support-web" in found["services.txt"]
    items = json.loads(found["objects/manifests.json"])["items"]
    assert ["node1"] == [item["metadata"]["name"] for item in items if item["kind"] == "Node"]
    assert "Plan: 0 to change, 0 to add, 0 to remove" in found["plan.txt"]
    assert "default/support-web" in found["rules/pyproxy.txt"]
    raw = {path: text for path, text in found.items() if path.startswith("rules/") and path != "rules/pyproxy.txt"}
    assert any("30160" in text for text in raw.values()), raw.keys()
