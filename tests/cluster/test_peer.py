"""pyproxy does with every packet what the real kube-proxy does, for the same objects in the same cluster."""

from collections.abc import Iterator

import pytest

from .controlplane import ControlPlane
from .peer.answers import fates
from .peer.handmade import STATES
from .peer.modes import MODES
from .peer.objects import State
from .peer.packets import destinations, packets
from .peer.pair import Pair
from .peer.world import CORE

CLUSTER_CIDR = "--cluster-cidr=10.244.0.0/16,fd00:10:244::/48"


@pytest.fixture(scope="module", params=MODES, ids=str)
def pair(control_plane: ControlPlane, request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Give two labs with proxies in one mode."""
    with Pair(control_plane, request.param, [CLUSTER_CIDR]) as pair:
        yield pair


@pytest.mark.parametrize("state", STATES.values(), ids=STATES.keys())
def test_handmade(pair: Pair, state: State) -> None:
    """Packets of all kinds meet the same with Services of all kinds."""
    told = pair.tell(state)
    found = fates(pair, packets(CORE, destinations(told)))

    assert [] == [str(fate) for fate in found if not fate.is_equal]
