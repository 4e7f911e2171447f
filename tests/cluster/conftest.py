"""One control plane for all the tests here; each test leaves it running, and without the objects it made."""

import os
from collections.abc import Iterator

import pytest

from .controlplane import ControlPlane
from .namespace import fresh_namespace
from .process import BINARIES


@pytest.fixture(scope="session")
def peers() -> None:
    """Skip what needs root and the built programs where they are not there."""
    if os.geteuid():
        pytest.skip("network namespaces need root")
    if not (BINARIES / ".stamp").exists():
        pytest.skip("the control plane is not built: run tests/cluster/build.sh")


@pytest.fixture(scope="session")
def control_plane(peers: None) -> Iterator[ControlPlane]:  # noqa: ARG001 - it decides whether to skip
    """Give the control plane of the session."""
    with ControlPlane() as started:
        yield started


@pytest.fixture
def namespace(peers: None) -> Iterator[str]:  # noqa: ARG001 - it decides whether to skip
    """Give a network namespace with nothing but a loopback."""
    with fresh_namespace() as name:
        yield name
