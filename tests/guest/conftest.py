"""A cluster in IPVS mode; `python -m tests.guest` runs these tests on a kernel with ip_vs."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.ipvs import IPVS
from tests.packets.cluster import Cluster, running_cluster


@pytest.fixture(scope="session")
def ipvs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Provide a cluster with running agents."""
    with running_cluster(IPVS, Path(tmp_path_factory.mktemp("ipvs"))) as running:
        yield running
