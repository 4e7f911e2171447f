"""A network namespace for one test, which runs in it: what it does to the kernel ends with it.

Law: the test's own process moves there and back, its main thread that is, so that `/proc/net` is the namespace's
too. Programs and threads that the test starts are in it as well.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pyproxy.linux.iptables_programs import Variant, program
from pyproxy.model.address import Family
from tests.lab.namespace import create, new_prefix, remove

_CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)


@contextmanager
def own_namespace() -> Iterator[None]:
    """Be in a new network namespace."""
    prefix = new_prefix()
    try:
        [namespace] = create([f"{prefix}own"])
        with inside(namespace.path):
            yield
    finally:
        remove(prefix)


@contextmanager
def inside(path: Path) -> Iterator[None]:
    """Be in a network namespace that is there."""
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    try:
        _enter(path)
        yield
    finally:
        _set_namespace(home)
        os.close(home)


def _enter(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _set_namespace(descriptor)
    finally:
        os.close(descriptor)


def _set_namespace(descriptor: int) -> None:
    # os.setns is there from Python 3.12 on.
    if _LIBC.setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def run(*argv: str, stdin: str = "") -> str:
    """Run a program to its end and return its standard output; a failure raises with what it said."""
    result = subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{argv}: {result.returncode}: {result.stderr}"
    return result.stdout


def load(family: Family, variant: Variant, text: str) -> None:
    """Add to the tables what restore input says."""
    run(program(family, variant, "restore"), "--noflush", stdin=text)


def dump(family: Family, variant: Variant) -> str:
    """Return every table of a variant that exists, with packet counters, but without the time of the dump."""
    return re.sub(r"(?m)^#.*\n", "", run(program(family, variant, "save"), "-c"))


def listed_tables() -> tuple[str, ...]:
    """Return the names of all tables that exist, of both variants and families."""
    legacy = [Path(f"/proc/net/{name}_tables_names").read_text() for name in ("ip", "ip6")]
    return (run("nft", "list", "tables"), *legacy)


def hide_python_iptables(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have programs that a test starts find no libiptc, as where iptables is installed without its libraries."""
    (directory / "iptc.py").write_text("raise ImportError('libiptc is not here')")
    monkeypatch.setenv("PYTHONPATH", str(directory))
