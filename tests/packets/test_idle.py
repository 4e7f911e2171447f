"""An agent that has nothing to do: how often something wakes it."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path

import pytest

from tests.lab.waiting import wait_until

from .cluster import FLAGS, PYPROXY
from .own_namespace import run

pytestmark = pytest.mark.usefixtures("own_tables")

EXAMPLE = Path("examples/clusterip.yaml")
SAMPLE_SECONDS = 3.0
MOST_PER_SECOND = 1.5
"""It waits for notifications of the kernel. A look twice a second would be more."""
_WAITS = re.compile(r"^voluntary_ctxt_switches:\s+(\d+)", re.MULTILINE)


def wake_ups(pid: int) -> int:
    """Return how often the threads of a process have waited for something."""
    texts = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/status")]
    return sum(int(number) for text in texts for number in _WAITS.findall(text))


def wake_ups_per_second(pid: int) -> float:
    """Return how often a process is woken, by a short sample."""
    before, started = wake_ups(pid), time.monotonic()
    time.sleep(SAMPLE_SECONDS)
    return (wake_ups(pid) - before) / (time.monotonic() - started)


def test_nothing_is_polled(tmp_path: Path) -> None:
    """Rules and files that stay the same do not wake the agent, and those that change do."""
    log, config, manifests = (tmp_path / name for name in ("log", "config.yaml", "manifests"))
    manifests.mkdir()
    config.write_text("apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: nftables\n")
    command = [PYPROXY, "run", f"--config={config}", f"--manifests={manifests}", *FLAGS]
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            wait_until(lambda: "first sync done" in log.read_text(), "the first sync")
            wait_until(lambda: wake_ups_per_second(process.pid) <= MOST_PER_SECOND, "a quiet agent")
            (manifests / "services.yaml").write_text(EXAMPLE.read_text())
            wait_until(lambda: "1 of 1 Service ports changed" in log.read_text(), "the Service")
            run("nft", "delete", "table", "ip", "pyproxy")
            wait_until(lambda: "pyproxy" in run("nft", "list", "tables", "ip"), "the repair")
            config.write_text(config.read_text() + "clusterCIDR: 10.244.0.0/16\n")
            assert 1 == process.wait(timeout=20)
        finally:
            process.terminate()
