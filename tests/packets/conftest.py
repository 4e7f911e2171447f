"""One cluster for all suites of a mode; each suite brings its objects and takes them away again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from tests.lab import Lab

from .cluster import ANSWER_SECONDS, CLUSTER_CIDR_FLAG, Cluster
from .gate import SYNC_PERIOD_FLAG, Gate
from .modes import MODES, Mode
from .objects import PLAN


def pytest_configure(config: pytest.Config) -> None:
    """Make the mark of `modes.needs` known."""
    config.addinivalue_line("markers", "needs(feature): a test for the modes only that have this feature")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Take out tests of what their mode does not have."""
    missing = [item for item in items if not _mode_has_what_it_needs(item)]
    if missing:
        config.hook.pytest_deselected(items=missing)
        items[:] = [item for item in items if item not in set(missing)]


def _mode_has_what_it_needs(item: pytest.Item) -> bool:
    features = [mark.args[0] for mark in item.iter_markers("needs")]
    return isinstance(item, pytest.Function) and all(
        getattr(item.callspec.params["mode"], feature) for feature in features
    )


@pytest.fixture(scope="session", params=MODES, ids=str)
def mode(request: pytest.FixtureRequest) -> Mode:
    """Give each mode that this kernel has; a further mode is a further row of `MODES`."""
    return cast("Mode", request.param)


@pytest.fixture(scope="session")
def cluster(mode: Mode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Give a cluster with running agents."""
    if os.geteuid():
        pytest.skip("network namespaces need root")
    with Lab(PLAN.shape, timeout_seconds=ANSWER_SECONDS) as lab:
        running = Cluster(lab, mode, Path(tmp_path_factory.mktemp(mode.name)))
        running.start()
        yield running
        running.stop()


@pytest.fixture(scope="module")
def gate(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    """Give the gate that the agents of a module write through."""
    standing = Gate(cluster.mode, Path(tmp_path_factory.mktemp("gate")))
    flags = cluster.flags
    cluster.restart(CLUSTER_CIDR_FLAG, SYNC_PERIOD_FLAG, env=standing.env)
    yield standing
    standing.admit_all()
    cluster.restart(*flags)
