"""A network namespace in which one test runs; its rules and settings end with it.

The main thread of the test process enters the namespace and leaves it again. So `/proc/net` shows this namespace, and
programs and threads that the test starts are in it as well.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pyproxy.linux.iptables_programs import Variant, program
from pyproxy.model.address import Family
from tests.lab.namespace import create, enter, new_prefix, remove


@contextmanager
def own_namespace() -> Iterator[None]:
    """Enter a new network namespace."""
    prefix = new_prefix()
    try:
        [namespace] = create([f"{prefix}own"])
        with inside(namespace.path):
            yield
    finally:
        remove(prefix)


@contextmanager
def inside(path: Path) -> Iterator[None]:
    """Enter an existing network namespace."""
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    try:
        with path.open("rb") as namespace:
            enter(namespace.fileno())
        yield
    finally:
        enter(home)
        os.close(home)


def run(*argv: str, stdin: str = "") -> str:
    """Run a program and return its standard output; a failure raises AssertionError with its error output."""
    result = subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{argv}: {result.returncode}: {result.stderr}"
    return result.stdout


def load(family: Family, variant: Variant, text: str) -> None:
    """Load restore input into the tables."""
    run(program(family, variant, "restore"), "--noflush", stdin=text)


def dump(family: Family, variant: Variant) -> str:
    """Return all existing tables of a variant, with packet counters, but without the time of the dump."""
    return re.sub(r"(?m)^#.*\n", "", run(program(family, variant, "save"), "-c"))


def listed_tables() -> tuple[str, ...]:
    """Return the names of all existing tables, of both variants and families."""
    legacy = [Path(f"/proc/net/{name}_tables_names").read_text() for name in ("ip", "ip6")]
    return (run("nft", "list", "tables"), *legacy)


def hide_python_iptables(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide libiptc from programs that a test starts, as if iptables were installed without its libraries."""
    (directory / "iptc.py").write_text("raise ImportError('libiptc is missing')")
    monkeypatch.setenv("PYTHONPATH", str(directory))
