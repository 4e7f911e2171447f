"""One cluster for all suites of a mode; each suite adds its objects and removes them again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from pyproxy.model.address import Family
from tests.lab import Host

from .cluster import CLUSTER_CIDR_FLAG, Cluster, running_cluster
from .gate import SYNC_PERIOD_FLAG, Gate
from .modes import MODES, Mode
from .nft_agent import NftAgent, Start, everything, node_namespace, node_settings
from .own_namespace import own_namespace
from .spoofing import SPOOFING


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker of `modes.needs`."""
    config.addinivalue_line("markers", "needs(feature): run the test only in modes that have this feature")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect tests of features that their mode does not have."""
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
    """Provide each mode that this kernel supports; a new mode is a new row of `MODES`."""
    return cast("Mode", request.param)


@pytest.fixture(scope="session")
def cluster(mode: Mode, tmp_path_factory: pytest.TempPathFactory, needs_root: None) -> Iterator[Cluster]:  # noqa: ARG001 - skips without root
    """Provide a cluster with running agents."""
    with running_cluster(mode, Path(tmp_path_factory.mktemp(mode.name))) as running:
        yield running


@pytest.fixture
def spoofer(cluster: Cluster) -> Iterator[Host]:
    """Provide a host on the node's segment whose packets to one public address are rewritten to 127.0.0.1."""
    host = cluster.lab["outside1"]
    host.run("nft", "-f", "-", stdin=SPOOFING)
    yield host
    host.run("nft", "delete", "table", "ip", "spoofing")


@pytest.fixture(scope="module")
def gate(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    """Provide the gate through which the agents write during a module."""
    made = Gate(cluster.mode, Path(tmp_path_factory.mktemp("gate")))
    with cluster.keeping_flags():
        cluster.restart(CLUSTER_CIDR_FLAG, SYNC_PERIOD_FLAG, env=made.env)
        yield made
        made.admit_all()


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Provide an xtables lock file that no other program on this machine uses."""
    path = tmp_path / "lock"
    monkeypatch.setenv("XTABLES_LOCKFILE", str(path))
    return path


@pytest.fixture
def own_tables(needs_root: None, lock: Path) -> Iterator[None]:  # noqa: ARG001 - only for their effects
    """Run the test in its own network namespace, with its own xtables lock."""
    with own_namespace():
        yield


@pytest.fixture(params=Family, ids=str)
def family(request: pytest.FixtureRequest) -> Family:
    """Provide each family."""
    return Family(request.param)


@pytest.fixture
def start(needs_root: None, family: Family) -> Iterator[Start]:  # noqa: ARG001 - skips without root
    """Run the test in its own namespace; provide a function that starts an agent of the nftables mode there."""
    with node_namespace(node_settings(family)) as start_agent:
        yield start_agent


@pytest.fixture
def agent(start: Start, family: Family) -> NftAgent:
    """Provide an agent of the nftables mode that has programmed `everything`, and has seen no external change."""
    started = start()
    started.put(*everything(family))
    assert not started.kernel.changed_externally()
    return started
