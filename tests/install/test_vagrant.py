"""The Vagrant lab: its Vagrantfile, and its scripts; the script of the nodes runs in machines with a real systemd."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from tests.lab import Host, Lab, LabError, Shape
from tests.lab.waiting import wait_until

from .machine import PATIENCE_SECONDS, ROOT, Machine, run

PLACES = {"node1": "192.168.56.11", "node2": "192.168.56.12"}
"""The machines of the lab without a cluster, from the Vagrantfile and vagrant/manifests."""
SCRIPT = "/vagrant/vagrant/node.sh"
SHELL_SCRIPTS = ("vagrant/*.sh", "packaging/*.sh", "packaging/install", "tests/install/*.sh")


@pytest.fixture(scope="module")
def machines(debian: None, dist: Path) -> Iterator[dict[str, Machine]]:  # noqa: ARG001 - needs the files
    """Provide two machines with an address on the private network, and with this tree in the folder of Vagrant."""
    with ExitStack() as stack:
        lab = stack.enter_context(Lab(Shape(nodes=2)))
        booted = {}
        for name, address in PLACES.items():
            host: Host = lab[name]
            host.run("ip", "address", "add", f"{address}/24", "dev", "eth0")
            booted[name] = stack.enter_context(Machine(host, {"/vagrant": ROOT}))
            # There is no name server, and commands should not wait for one.
            booted[name].write("/etc/resolv.conf", "")
        yield booted


@pytest.mark.parametrize("lab", ["cluster", "files"])
def test_the_vagrantfile_is_valid(lab: str, tmp_path: Path) -> None:
    """Vagrant accepts the file for both labs."""
    result = subprocess.run(
        ["vagrant", "validate", "--ignore-provider"],
        cwd=ROOT,
        env=os.environ | {"PYPROXY_LAB": lab, "VAGRANT_HOME": str(tmp_path), "VAGRANT_DOTFILE_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (0, "Vagrantfile validated successfully.") == (
        result.returncode,
        (result.stdout.splitlines() or [result.stderr])[-1],
    )


@pytest.mark.parametrize("pattern", SHELL_SCRIPTS)
def test_scripts_are_sound(pattern: str) -> None:
    """Shellcheck finds no problem in the installation scripts."""
    scripts = [str(path) for path in sorted(ROOT.glob(pattern))]

    assert scripts
    assert "" == run("shellcheck", *scripts)


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("10.0.2.15", "where every machine has the same address"),
        ("127.0.1.1", "is a loopback address"),
        ("192.168.56.99", "no interface of this machine has"),
    ],
)
def test_a_wrong_address_is_refused(machines: dict[str, Machine], address: str, reason: str) -> None:
    """The script rejects an address that is not the node's own on the private network, and changes nothing."""
    with pytest.raises(LabError, match=reason):
        machines["node1"].run(SCRIPT, "files", "node1", address)

    assert 0 != machines["node1"].attempt("test", "-e", "/opt/pyproxy").returncode


def test_the_lab_without_a_cluster(machines: dict[str, Machine]) -> None:
    """After the script, two machines answer for one Service, also when it is run again."""
    for _ in range(2):
        for name, machine in machines.items():
            machine.run(SCRIPT, "files", name, PLACES[name])

        for machine in machines.values():
            machine.wait_for("pyproxy.service", ActiveState="active", UnitFileState="enabled")
            wait_until(partial(both_answer, machine), "answers of both", timeout_seconds=PATIENCE_SECONDS)
    node = machines["node1"]
    assert "node1" == node.run("getent", "hosts", PLACES["node1"]).split()[-1]
    assert "1" == node.run("cat", "/proc/sys/net/ipv4/ip_forward").strip()


def both_answer(machine: Machine) -> bool:
    """Return whether requests to the Service reach both machines, and no other server."""
    curl = ("curl", "--silent", "--max-time", "2", "http://10.96.0.10/")
    return {machine.attempt(*curl).stdout.strip() for _ in range(10)} == set(PLACES)
