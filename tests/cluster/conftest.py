"""One control plane for all the tests here; each test leaves it running, and without the objects it made."""

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
    """Fail what needs root or the built programs where they are not there: a skipped peer proves nothing."""
    if os.geteuid():
        pytest.fail("network namespaces need root: run make test-cluster as root")
    if not BINARIES.exists():
        pytest.fail("the control plane is not built: run tests/cluster/build.sh, or make test-cluster")


@pytest.fixture(scope="session")
def control_plane(peers: None) -> Iterator[ControlPlane]:  # noqa: ARG001 - it decides whether tests can run
    """Give the control plane of the session."""
    with ControlPlane() as started:
        yield started


@pytest.fixture
def cluster(control_plane: ControlPlane) -> Iterator[Cluster]:
    """Give a way to make objects in the control plane of the session, which keeps none of a test."""
    with ExitStack() as at_exit:
        yield Cluster(control_plane, at_exit)


@pytest.fixture
def relay(control_plane: ControlPlane) -> Relay:
    """Give a way to the API server that fails on command."""
    return control_plane.new_relay()


@pytest.fixture
def namespace(peers: None) -> Iterator[str]:  # noqa: ARG001 - it decides whether tests can run
    """Give a network namespace with nothing but a loopback."""
    with fresh_namespace() as name:
        yield name
