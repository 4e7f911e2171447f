"""What installs: the archive of `make dist`, and a machine to install it on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import Lab, Shape

from .machine import ROOT, Machine, run

ARCHIVES = "/srv/dist"
"""Where a machine finds what `make dist` made."""


@pytest.fixture(scope="session", autouse=True)
def is_root() -> None:
    """Fail where the tests cannot work: a skipped installation proves nothing."""
    if os.geteuid():
        pytest.fail("namespaces and machines need root")


@pytest.fixture(scope="session")
def dist() -> Path:
    """Give the directory with what `make dist` makes of this tree."""
    run("make", "--silent", "dist")
    return ROOT / "dist"


@pytest.fixture(scope="session")
def debian() -> None:
    """Have the systems of debian.sh."""
    run("tests/install/debian.sh")


@pytest.fixture(scope="session")
def built() -> None:
    """Have the programs of the control plane."""
    run("tests/cluster/build.sh")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Give a lab of one node, with pods that answer."""
    with Lab(Shape(nodes=1), timeout_seconds=4.0) as started:
        for pod in started.pods:
            pod.serve(tcp=[8080])
        yield started


@pytest.fixture(scope="module")
def machine(debian: None, dist: Path, lab: Lab) -> Iterator[Machine]:  # noqa: ARG001 - the files must be there
    """Give a machine with nothing of pyproxy but the archive."""
    with Machine(lab["node1"], {ARCHIVES: dist}) as booted:
        yield booted
