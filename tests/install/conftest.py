"""Fixtures for installations: the archive of `make dist`, and a machine to install it on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.controlplane import ControlPlane
from tests.lab import Lab, Shape

from .machine import ROOT, Machine, run

ARCHIVES = "/srv/dist"
"""The directory in a machine with the output of `make dist`."""


@pytest.fixture(scope="session", autouse=True)
def is_root() -> None:
    """Fail without root, because a skipped installation would prove nothing."""
    if os.geteuid():
        pytest.fail("namespaces and machines need root")


@pytest.fixture(scope="session")
def dist() -> Path:
    """Provide the directory with the output of `make dist` for this tree."""
    run("make", "--silent", "dist")
    return ROOT / "dist"


@pytest.fixture(scope="session")
def debian() -> None:
    """Build the systems of debian.sh."""
    run("tests/install/debian.sh")


@pytest.fixture(scope="session")
def built() -> None:
    """Build the programs of the control plane."""
    run("tests/cluster/build.sh")


@pytest.fixture(scope="session")
def control_plane(built: None) -> Iterator[ControlPlane]:  # noqa: ARG001 - needs the programs
    """Provide a control plane with RBAC."""
    with ControlPlane(authorization="RBAC", flags=["--allow-privileged"]) as started:  # as in kubeadm
        yield started


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Provide a lab with one node, whose pods answer."""
    with Lab(Shape(nodes=1), timeout_seconds=4.0) as started:
        for pod in started.pods:
            pod.serve(tcp=[8080])
        yield started


@pytest.fixture(scope="module")
def machine(debian: None, dist: Path, lab: Lab) -> Iterator[Machine]:  # noqa: ARG001 - needs the files
    """Provide a machine with only the archive of pyproxy."""
    with Machine(lab["node1"], {ARCHIVES: dist}) as booted:
        yield booted
