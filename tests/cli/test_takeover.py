"""``pyproxy takeover`` as a user types it, in a network namespace without rules."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PYPROXY = str(Path(sys.executable).with_name("pyproxy"))
OBJECTS = """
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec: {clusterIP: 10.96.0.10, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: bad, namespace: default}
spec: {clusterIP: 10.96.0.11, ports: [{port: http}]}
"""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")


def takeover(*words: str) -> subprocess.CompletedProcess[str]:
    """Run the command."""
    argv = [PYPROXY, "takeover", *words]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)


def test_only_a_dry_run_is_available() -> None:
    """Without --dry-run nothing is done, and the message names the command that takes over."""
    done = takeover("--proxy-mode=nftables")

    assert (2, "") == (done.returncode, done.stdout)
    assert "Error: give --dry-run: the takeover itself happens in run" in done.stderr


def test_side_by_side_takes_nothing_over() -> None:
    """Side-by-side with kube-proxy there is nothing to take over, so the command is an error."""
    done = takeover("--dry-run", "--manifests=/dev/null", "--service-proxy-name=trial")

    assert (2, "") == (done.returncode, done.stdout)
    assert "Error: --service-proxy-name: pyproxy takes nothing over when it runs side-by-side" in done.stderr


@needs_root
@pytest.mark.parametrize("mode", ["iptables", "nftables"])
def test_objects_from_a_file(tmp_path: Path, mode: str) -> None:
    """Objects can come from files; each problem in them is printed, and the rest is planned."""
    path = tmp_path / "objects.yaml"
    path.write_text(OBJECTS)
    argv = ["unshare", "--net", PYPROXY, "takeover", "--dry-run", f"--manifests={path}", "--hostname-override=node1"]

    done = subprocess.run([*argv, f"--proxy-mode={mode}"], capture_output=True, text=True, check=False, timeout=60)

    assert 0 == done.returncode
    assert re.search(r"^\+ default/web tcp +10\.96\.0\.10:80 -> 0 endpoints  1 \w+ added$", done.stdout, re.MULTILINE)
    assert "Plan: 0 to change, 1 to add, 0 to remove, shared " in done.stdout
    assert "takeover --dry-run is deprecated, use `pyproxy plan`" in done.stderr
    assert "Service default/bad: spec.ports[0].port" in done.stderr
