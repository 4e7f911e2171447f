"""``--metrics-bind-address`` with an interface or CIDR block, while addresses are added and removed."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path

import pytest

from tests.lab.waiting import wait_until

from .cluster import FLAGS, PYPROXY
from .own_namespace import run

pytestmark = pytest.mark.usefixtures("own_tables")

OURS = ("198.51.100.7", "2001:db8:7::1")
OTHER = "203.0.113.7"


@contextmanager
def agent(folder: Path, place: str) -> Iterator[None]:
    """Run an agent without objects, in a namespace with only a loopback interface."""
    run("ip", "link", "set", "lo", "up")
    (folder / "manifests").mkdir()
    own = (f"--manifests={folder / 'manifests'}", "--hostname-override=node1", "--proxy-mode=iptables")
    command = [PYPROXY, "run", *own, *FLAGS, f"--metrics-bind-address={place}", "--healthz-bind-address="]
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            yield
        finally:
            process.terminate()


def add_interface() -> None:
    """Create an interface with an address of each family."""
    run("ip", "link", "add", "metrics0", "type", "veth", "peer", "metrics1")
    run("ip", "link", "set", "metrics0", "up")
    for address, length in zip(OURS, (32, 128), strict=True):
        run("ip", "address", "add", f"{address}/{length}", "dev", "metrics0", *(["nodad"] if ":" in address else []))


def answers(address: str) -> bool:
    """Return whether metrics are served on an address."""
    connection = HTTPConnection(address, 9249, timeout=10)
    with suppress(OSError):
        connection.request("GET", "/metrics")
        return b"pyproxy_build_info" in connection.getresponse().read()
    return False


def test_by_interface(tmp_path: Path) -> None:
    """Metrics are served on all addresses of an interface that is added later, and no longer on a removed address."""
    with agent(tmp_path, "metrics0:9249"):
        wait_until(lambda: "has no address" in (tmp_path / "log").read_text(), "the message about the missing address")
        add_interface()
        wait_until(lambda: all(map(answers, OURS)), "metrics on both addresses")
        assert not answers("127.0.0.1")

        run("ip", "address", "del", f"{OURS[0]}/32", "dev", "metrics0")
        run("ip", "address", "add", f"{OURS[0]}/32", "dev", "lo")
        wait_until(lambda: not answers(OURS[0]), "the end of metrics on the removed address")
        assert answers(OURS[1])


def test_by_cidr(tmp_path: Path) -> None:
    """Metrics are served on addresses of the node within a block, also if they are added later."""
    with agent(tmp_path, "198.51.100.0/24:9249"):
        add_interface()
        run("ip", "address", "add", f"{OTHER}/32", "dev", "metrics0")
        wait_until(lambda: answers(OURS[0]), "metrics on the address")
        assert [False, False] == [answers(OURS[1]), answers(OTHER)]
