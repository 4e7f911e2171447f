"""A cluster in IPVS mode, for tests that need a kernel with ip_vs: `python -m tests.guest` brings one."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.ipvs import IPVS
from tests.packets.cluster import Cluster, running_cluster
from tests.packets.modes import HAS_IPVS


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Take out what this kernel cannot do."""
    here = Path(__file__).parent
    missing = [item for item in items if here in item.path.parents and not HAS_IPVS]
    if missing:
        config.hook.pytest_deselected(items=missing)
        items[:] = [item for item in items if item not in set(missing)]


@pytest.fixture(scope="session")
def ipvs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Give a cluster with running agents."""
    with running_cluster(IPVS, Path(tmp_path_factory.mktemp("ipvs"))) as running:
        yield running
