"""Compatibility with nft and iptables of Debian 13, run from a chroot in a network namespace, in both directions."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.packets.own_namespace import own_namespace

from .machine import ROOT, run

TREE = ROOT / ".cache" / "trixie" / "root"
PYPROXY = str(Path(sys.executable).parent / "pyproxy")
OBJECTS = (
    "examples/clusterip.yaml",
    "examples/dual-stack.yaml",
    "examples/external-traffic-local.yaml",
    "examples/externalip.yaml",
)

PRIORITIES = {"raw": -300, "mangle": -150, "dstnat": -100, "filter": 0, "security": 50, "srcnat": 100}
"""Names of priorities, from nft(8)."""
_PRIORITY = re.compile(r"priority ([a-z]+)( [-+] \d+)?;")


@pytest.fixture(scope="module", autouse=True)
def tree() -> None:
    """Build the system of trixie.sh."""
    run("tests/install/trixie.sh")


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    """Enter a new network namespace."""
    with own_namespace():
        yield


def newer(*argv: str, stdin: str = "") -> str:
    """Run a program of Debian 13 in this network namespace; raises an error with its output if it fails."""
    # iptables-legacy-save reads the names of its tables from /proc/net.
    enter = 'mount --rbind /proc "$0/proc" && exec chroot "$0" "$@"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", enter, str(TREE), *argv],
        input=stdin,
        env={**os.environ, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.returncode, f"{argv}: {done.stderr}"
    return done.stdout


def planned(mode: str, manifest: str, output: str, *flags: str) -> str:
    """Return the planned rules for an example file, as input for nft or iptables-restore."""
    done = subprocess.run(
        [PYPROXY, "dump-rules", f"--manifests={ROOT / manifest}", f"--proxy-mode={mode}", "-o", output, *flags],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout


def test_versions() -> None:
    """The programs have the versions in docs/compatibility.md."""
    assert "nftables v1.1.3" in newer("nft", "--version")
    assert "iptables v1.8.11 (nf_tables)" in newer("iptables-nft", "--version")
    assert "iptables v1.8.11 (legacy)" in newer("iptables-legacy", "--version")


@pytest.mark.parametrize("manifest", OBJECTS)
def test_nft_loads_and_lists_our_table(manifest: str) -> None:
    """Nft 1.1 lists a table loaded by 1.0.6 as 1.0.6 does, and loads the same table."""
    text = planned("nftables", manifest, "nft")
    subprocess.run(["nft", "--file", "-"], input=text, text=True, check=True)
    older = listed()
    assert older == lines_of(newer("nft", "list", "ruleset"))
    json.loads(newer("nft", "--json", "list", "ruleset"))
    subprocess.run(["nft", "flush", "ruleset"], check=True)

    newer("nft", "--file", "-", stdin=text)
    # Not listed by 1.0.6, which crashes on element types that 1.1 has written: docs/compatibility.md.
    assert older == lines_of(newer("nft", "list", "ruleset"))
    assert any("numgen" in line for line in older)


def listed() -> list[str]:
    """Return the listing of this machine's nft, as text, because 1.0.6 crashes when it lists our table as JSON."""
    return lines_of(subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True).stdout)


def lines_of(text: str) -> list[str]:
    """Return the sorted lines of a listing without trailing commas, because the kernel lists elements in any order."""
    # In output hooks 1.0.6 prints numbers, 1.1 names.
    text = _PRIORITY.sub(
        lambda found: f"priority {PRIORITIES[found[1]] + int((found[2] or '0').replace(' ', ''))};", text
    )
    return sorted(element.strip() for line in text.splitlines() for element in line.split(","))


@pytest.mark.parametrize("variant", ["nft", "legacy"])
@pytest.mark.parametrize("manifest", OBJECTS)
def test_iptables_reads_and_writes_our_chains(manifest: str, variant: str) -> None:
    """Iptables 1.8.11 loads our rules and saves the same text as 1.8.9, which also saves what 1.8.11 loaded."""
    by_family = {
        program: planned("iptables", manifest, "restore", f"--family={family}")
        for program, family in (("iptables", "ipv4"), ("ip6tables", "ipv6"))
    }
    for program, rules in by_family.items():
        restore, save = (f"{program}-{variant}-{verb}" for verb in ("restore", "save"))
        subprocess.run([restore], input=rules, text=True, check=True)
        older = rules_of(subprocess.run([save], capture_output=True, text=True, check=True).stdout)
        assert older == rules_of(newer(save))
        newer(restore, stdin=rules)
        assert older == rules_of(subprocess.run([save], capture_output=True, text=True, check=True).stdout)
    assert any("-j KUBE-SVC-" in rules for rules in by_family.values())


def rules_of(text: str) -> list[str]:
    """Return the output of iptables-save without comments and counters."""
    return [line.partition(" [")[0] for line in text.splitlines() if not line.startswith("#")]
