"""One control plane for all cluster tests; each test removes the objects that it has created."""

import os
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from .controlplane import ControlPlane
from .namespace import fresh_namespace
from .objects import Cluster
from .process import BINARIES
from .relay import Relay


@pytest.fixture(scope="session")
def peers() -> None:
    """Fail without root or the built programs, because a skipped comparison would prove nothing."""
    if os.geteuid():
        pytest.fail("network namespaces need root: run make test-cluster as root")
    if not BINARIES.exists():
        pytest.fail("the control plane is not built: run tests/cluster/build.sh, or make test-cluster")


@pytest.fixture(scope="session")
def control_plane(peers: None) -> Iterator[ControlPlane]:  # noqa: ARG001 - fails without the programs
    """Provide the control plane of the session."""
    with ControlPlane() as started:
        yield started


@pytest.fixture
def cluster(control_plane: ControlPlane) -> Iterator[Cluster]:
    """Provide helpers that create objects in the control plane, and remove them after the test."""
    with ExitStack() as at_exit:
        yield Cluster(control_plane, at_exit)


@pytest.fixture
def relay(control_plane: ControlPlane) -> Relay:
    """Provide a relay to the API server that fails on command."""
    return control_plane.new_relay()


@pytest.fixture
def namespace(peers: None) -> Iterator[str]:  # noqa: ARG001 - fails without the programs
    """Provide a network namespace with only a loopback interface."""
    with fresh_namespace() as name:
        yield name
