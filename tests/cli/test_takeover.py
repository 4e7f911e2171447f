"""``pyproxy takeover`` as a user types it, in a network namespace where nobody has rules."""

from __future__ import annotations

import os
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


def test_only_a_dry_run_is_to_be_had() -> None:
    """Without --dry-run nothing is done, and the message says where the take-over happens."""
    done = takeover("--proxy-mode=nftables")

    assert (2, "") == (done.returncode, done.stdout)
    assert "Error: say --dry-run: the take-over itself happens in run" in done.stderr


def test_a_trial_takes_nothing_over() -> None:
    """Beside kube-proxy nothing of its is touched, and a list of what goes would be wrong."""
    done = takeover("--dry-run", "--manifests=/dev/null", "--service-proxy-name=trial")

    assert (2, "") == (done.returncode, done.stdout)
    assert "Error: --service-proxy-name: a trial takes nothing over" in done.stderr


@needs_root
@pytest.mark.parametrize("mode", ["iptables", "nftables"])
def test_objects_from_a_file(tmp_path: Path, mode: str) -> None:
    """Objects can come from files; what is wrong with them is told, and the rest is planned."""
    path = tmp_path / "objects.yaml"
    path.write_text(OBJECTS)
    argv = ["unshare", "--net", PYPROXY, "takeover", "--dry-run", f"--manifests={path}", "--hostname-override=node1"]

    done = subprocess.run([*argv, f"--proxy-mode={mode}"], capture_output=True, text=True, check=False, timeout=60)

    assert 0 == done.returncode
    assert "default/web tcp: 0 -> 1  (only here)" in done.stdout
    assert "Service default/bad: spec.ports[0].port" in done.stderr
