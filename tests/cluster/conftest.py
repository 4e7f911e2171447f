"""One control plane for all the tests here; each test leaves it running, and without the objects it made."""

import os
from collections.abc import Iterator

import pytest

from .controlplane import ControlPlane
from .namespace import fresh_namespace
from .process import BINARIES


@pytest.fixture(scope="session")
def peers() -> None:
    """Fail what needs root or the built programs where they are not there: a skipped peer proves nothing."""
    if os.geteuid():
        pytest.fail("network namespaces need root: run make test-cluster as root")
    if not (BINARIES / ".stamp").exists():
        pytest.fail("the control plane is not built: run tests/cluster/build.sh, or make test-cluster")


@pytest.fixture(scope="session")
def control_plane(peers: None) -> Iterator[ControlPlane]:  # noqa: ARG001 - it decides whether tests can run
    """Give the control plane of the session."""
    with ControlPlane() as started:
        yield started


@pytest.fixture
def namespace(peers: None) -> Iterator[str]:  # noqa: ARG001 - it decides whether tests can run
    """Give a network namespace with nothing but a loopback."""
    with fresh_namespace() as name:
        yield name
