"""pyproxy treats every packet like the real kube-proxy, for the same objects in the same cluster.

These packets avoid the intended differences in docs/differences.md.
"""

from collections.abc import Iterator
from random import Random

import pytest

from .controlplane import ControlPlane
from .peer.answers import divergences
from .peer.generated import state as generated_state
from .peer.handmade import STATES
from .peer.modes import MODES
from .peer.objects import State
from .peer.packets import core_and_further, destinations, packets, some
from .peer.pair import Pair
from .peer.world import CLUSTER_CIDR_FLAG, CORE, FURTHER

SETS = 20
LONG_SETS = 200
FURTHER_PACKETS = 60
"""The number of additional packets of a handmade state, beyond all packets from core sources to frontends."""
GENERATED_PACKETS = 60


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Create a test for each generated state, with its number and the seed of the run."""
    if "number" in metafunc.fixturenames:
        config = metafunc.config
        seed = config.getoption("hypothesis_seed") or "0"
        numbers = range(LONG_SETS if config.getoption("--long") else SETS)
        metafunc.parametrize(("seed", "number"), [(seed, number) for number in numbers])


@pytest.fixture(scope="module", params=MODES, ids=str)
def pair(control_plane: ControlPlane, request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Provide two labs with proxies in one mode."""
    with Pair(control_plane, request.param, [CLUSTER_CIDR_FLAG]) as started:
        yield started


@pytest.mark.parametrize("state", STATES.values(), ids=STATES.keys())
def test_handmade(pair: Pair, state: State) -> None:
    """For every feature of Services, packets from all sources to all addresses have the same results."""
    created = pair.replace_objects(state)

    assert [] == divergences(pair, created, core_and_further(destinations(created), FURTHER_PACKETS))


def test_generated(pair: Pair, seed: str, number: int) -> None:
    """For random Services, slices and Nodes, packets have the same results."""
    created = pair.replace_objects(generated_state(seed, number))
    found = packets([*CORE, *FURTHER], destinations(created))
    wanted = some(found, GENERATED_PACKETS, Random(f"{pair.mode}/{seed}/{number}"))  # noqa: S311 - as above

    assert [] == divergences(pair, created, wanted)
