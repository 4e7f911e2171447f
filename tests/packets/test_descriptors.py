"""An agent that starts with a low limit of file descriptors, as under systemd, and later needs many for its Services."""

from __future__ import annotations

import json
import subprocess
from http.client import HTTPConnection
from pathlib import Path

import pytest

from tests.lab.waiting import wait_until

from .cluster import FLAGS, PYPROXY
from .objects import port, service
from .own_namespace import run

pytestmark = pytest.mark.usefixtures("own_tables")

FEW, MORE = 64, 4096
CHECK_PORTS = range(32000, 32000 + FEW)


def status(number: int) -> int:
    """Return the status of a health check node port, 0 for no answer."""
    connection = HTTPConnection("127.0.0.1", number, timeout=10)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()


def test_more_health_check_node_ports_than_descriptors_at_the_start(tmp_path: Path) -> None:
    """Every health check node port is served, and changes are programmed, within the hard limit of descriptors."""
    run("ip", "link", "set", "lo", "up")
    balanced = {"type": "LoadBalancer", "externalTrafficPolicy": "Local"}
    services = [
        service(f"balanced-{index}", index, port(80), healthCheckNodePort=number, **balanced)
        for index, number in enumerate(CHECK_PORTS, start=1)
    ]
    manifest = tmp_path / "services.json"
    manifest.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": services}))
    limits = ("prlimit", f"--nofile={FEW}:{MORE}")
    command = [*limits, PYPROXY, "run", f"--manifests={manifest}", "--proxy-mode=iptables", *FLAGS]
    with (tmp_path / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            wait_until(lambda: {503} == set(map(status, CHECK_PORTS)), "an answer on every port")
            assert "Too many open files" not in (tmp_path / "log").read_text()
        finally:
            process.terminate()
