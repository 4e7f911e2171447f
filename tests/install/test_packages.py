"""The Debian package and the wheel: installed and removed with the tools of users."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pyproxy.cli.program import COMMANDS
from tests.lab import Lab
from tests.packets.objects import node, slices

from .conftest import ARCHIVES
from .machine import ROOT, Machine, run
from .test_systemd import ACTIVE, FLAGS, UNIT, WEB, answer, is_silent

_PACKAGE = "pyproxy-node"


@pytest.fixture(scope="module")
def package(dist: Path) -> Path:
    """Provide the Debian package."""
    [found] = dist.glob("*.deb")
    return found


def test_contents_of_the_package(package: Path) -> None:
    """The package has a manual page for each command, completion for three shells, and units; all files are root's."""
    lines = [line.split() for line in run("dpkg-deb", "--contents", str(package)).splitlines()]

    assert {"root/root"} == {line[1] for line in lines}
    paths = {line[5].removeprefix(".") for line in lines}
    assert {f"/usr/share/man/man1/pyproxy-{name}.1.gz" for name in COMMANDS} <= paths
    assert {
        "/usr/bin/pyproxy",
        "/usr/lib/systemd/system/pyproxy.service",
        "/usr/share/bash-completion/completions/pyproxy",
        "/usr/share/zsh/vendor-completions/_pyproxy",
        "/usr/share/fish/vendor_completions.d/pyproxy.fish",
    } <= paths


def test_install_upgrade_and_remove(machine: Machine, lab: Lab, package: Path) -> None:
    """Neither installation nor removal touches the kernel; an upgrade leaves the agent running; purge leaves nothing."""
    file = f"{ARCHIVES}/{package.name}"
    assert "" == machine.attempt("dpkg", "--install", file).stderr

    machine.wait_for(UNIT, ActiveState="inactive")
    assert is_silent(lab)
    objects = {"apiVersion": "v1", "kind": "List", "items": [node("node1"), WEB, *slices(WEB, "pod1-1")]}
    machine.write("/etc/pyproxy/manifests/web.json", json.dumps(objects))
    machine.write("/etc/default/pyproxy", f"PYPROXY_FLAGS={FLAGS}\n")
    machine.start("pyproxy")
    pid = machine.wait_for(UNIT, **ACTIVE)["MainPID"]
    assert "pod1-1" == answer(lab)

    machine.run("dpkg", "--install", file)

    assert pid == machine.show(UNIT, "MainPID")["MainPID"]
    assert "systemctl start pyproxy-cleanup" in machine.run("dpkg", "--remove", _PACKAGE)
    assert "pod1-1" == answer(lab)
    machine.run("dpkg", "--install", file)
    machine.start("pyproxy-cleanup")
    assert is_silent(lab)
    machine.run("dpkg", "--purge", _PACKAGE)
    for path in ("/opt/pyproxy", "/usr/bin/pyproxy", "/etc/default/pyproxy", "/usr/lib/systemd/system/pyproxy.service"):
        assert 1 == machine.attempt("test", "-e", path).returncode, path


def test_support_for_users_without_rights(machine: Machine, package: Path) -> None:
    """Another user than root gets an archive that says what was not available, and no traceback."""
    machine.run("dpkg", "--install", f"{ARCHIVES}/{package.name}")
    # The archive is binary, so it is read in the machine.
    script = "cd /tmp && setpriv --reuid=65534 --clear-groups pyproxy support -o b.tar.gz && tar -xzOf b.tar.gz"

    done = machine.attempt("sh", "-euc", script)

    assert 0 == done.returncode, done.stderr
    assert "by uid 65534" in done.stdout
    assert "needs CAP_NET_ADMIN" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_pipx(dist: Path, tmp_path: Path) -> None:
    """`pipx install` of the wheel gives the command, without a compiler: python-iptables is an extra."""
    [wheel] = dist.glob("*.whl")
    places = {"PIPX_HOME": str(tmp_path / "home"), "PIPX_BIN_DIR": str(tmp_path / "bin"), "CC": "/bin/false"}

    subprocess.run(
        ["pipx", "install", "--pip-args=--no-compile", f"--python={sys.executable}", str(wheel)],
        env=os.environ | places,
        check=True,
        capture_output=True,
    )

    command = str(tmp_path / "bin" / "pyproxy")
    assert run(sys.executable, "-m", "pyproxy", "version") == run(command, "version")
    assert "default/web" in run(command, "services", f"--manifests={ROOT / 'examples'}", "--node=node1")
    assert [] == [*(tmp_path / "home").rglob("iptc")]


def test_builds_are_reproducible(dist: Path, tmp_path: Path) -> None:
    """A second build of wheel and source distribution, in another directory and at another time, gives the same files."""
    [wheel] = dist.glob("*.whl")
    run("packaging/wheel.sh", sys.executable, str(tmp_path))

    for first in (wheel, *dist.glob("pyproxy_node-*.tar.gz")):
        assert first.read_bytes() == (tmp_path / first.name).read_bytes(), first.name


def test_manual_pages_are_compressed_without_a_time(dist: Path, tmp_path: Path) -> None:
    """The archive installs compressed manual pages that are the same for each build."""
    [archive] = dist.glob("pyproxy-*.tar.gz")
    run("tar", "-xzf", str(archive), f"--directory={tmp_path}", "--strip-components=1", "--wildcards", "*/share/man")

    pages = [*tmp_path.rglob("*.1.gz")]
    assert len(COMMANDS) + 1 == len(pages)
    for page in pages:
        content = page.read_bytes()
        assert b"\0" * 4 == content[4:8]  # the time in the header (RFC 1952)
        assert gzip.decompress(content).startswith(b".TH PYPROXY")


@pytest.mark.long
@pytest.mark.parametrize("machine_name", ["x86_64", "aarch64"])
def test_archives_are_reproducible(dist: Path, tmp_path: Path, machine_name: str) -> None:
    """Two builds of the archive and of the Debian package give the same files, with programs for the right machine only."""
    for number in ("1", "2"):
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        run("packaging/archive.sh", sys.executable, str(dist), str(tmp_path / number), version, machine_name)

    names = sorted(path.name for path in (tmp_path / "1").iterdir())
    assert 2 == len(names)
    for name in names:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes(), name
    run("tar", "-xzf", str(tmp_path / "1" / names[0]), f"--directory={tmp_path}", "--wildcards", "*.so")
    # e_machine of the ELF header (elf.h): EM_X86_64 and EM_AARCH64.
    machines = {int.from_bytes(path.read_bytes()[18:20], "little") for path in tmp_path.rglob("*.so")}
    assert {{"x86_64": 62, "aarch64": 183}[machine_name]} == machines
