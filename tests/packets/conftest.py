"""One cluster for all suites of a mode; each suite brings its objects and takes them away again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from tests.lab import Lab

from .cluster import ANSWER_SECONDS, MODES, Cluster, Mode
from .objects import PLAN


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
