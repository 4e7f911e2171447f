"""The winner of an address, port or node port that several Service ports claim, and the ports to plan again for it."""

import pytest
from msgspec.structs import replace

from pyproxy.model.names import Protocol
from pyproxy.plan.claims import Claims
from pyproxy.plan.service_plan import Claim, ServicePlan
from tests.unit.plan.building import PLAN, ips, port_name

SHARED, OTHER = ips("203.0.113.1", "203.0.113.2")
OLD, NEW = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"
A, B, C = port_name("a"), port_name("b"), port_name("c")
BY_EXTERNAL_IP = replace(PLAN, external_ips=(SHARED,))
BY_CLUSTER_IP = replace(PLAN, cluster_ip=SHARED)
BY_LOAD_BALANCER_IP = replace(PLAN, load_balancer_ips=(SHARED,))
BY_NODE_PORT = replace(PLAN, node_port=30080)


def claims_of(a: ServicePlan, b: ServicePlan) -> Claims:
    """Return the claims of Services a and b."""
    claims = Claims()
    claims.update(A, replace(a, name=A))
    claims.update(B, replace(b, name=B))
    return claims


@pytest.mark.parametrize(
    ("a", "b", "winner"),
    [
        pytest.param(BY_EXTERNAL_IP, replace(BY_CLUSTER_IP, created=NEW), B, id="cluster IP before external IP"),
        pytest.param(BY_LOAD_BALANCER_IP, BY_CLUSTER_IP, B, id="cluster IP before load balancer IP"),
        pytest.param(
            replace(BY_EXTERNAL_IP, created=NEW),
            replace(BY_LOAD_BALANCER_IP, created=OLD),
            B,
            id="older before younger",
        ),
        pytest.param(
            replace(BY_CLUSTER_IP, created=NEW), replace(BY_CLUSTER_IP, created=OLD), B, id="older of two cluster IPs"
        ),
        pytest.param(BY_EXTERNAL_IP, replace(BY_EXTERNAL_IP, created=NEW), B, id="no time is youngest"),
        pytest.param(BY_EXTERNAL_IP, BY_EXTERNAL_IP, A, id="then the name"),
    ],
)
def test_winner(a: ServicePlan, b: ServicePlan, winner: object) -> None:
    """A cluster IP beats other addresses, then the older Service wins, then the name."""
    assert winner == claims_of(a, b).winner(Claim(SHARED, Protocol.TCP, 80))


def test_loser_keeps_the_rest() -> None:
    """A port is granted its plan without what another has; the winner's plan stays whole."""
    both = replace(PLAN, name=A, external_ips=(SHARED, OTHER), node_port=30080)
    claims = claims_of(both, BY_CLUSTER_IP)

    assert replace(both, external_ips=(OTHER,)) == claims.effective(A)
    assert replace(BY_CLUSTER_IP, name=B) == claims.effective(B)


def test_node_port_is_lost_alone() -> None:
    """Two Services with one node port: the second keeps its addresses."""
    loser = replace(BY_NODE_PORT, name=B, cluster_ip=OTHER)

    assert replace(loser, node_port=0) == claims_of(BY_NODE_PORT, loser).effective(B)


@pytest.mark.parametrize(
    "other",
    [
        replace(BY_EXTERNAL_IP, port=81),
        replace(BY_NODE_PORT, node_port=80),
        replace(BY_EXTERNAL_IP, external_ips=(OTHER,)),
    ],
    ids=["other port", "node port of the same number", "other address"],
)
def test_no_rivals(other: ServicePlan) -> None:
    """Claims that differ in address or port do not compete."""
    claims = claims_of(BY_EXTERNAL_IP, other)

    assert (SHARED,) == getattr(claims.effective(A), "external_ips", None)
    assert replace(other, name=B) == claims.effective(B)


def test_protocols_are_no_rivals() -> None:
    """One address and port in two protocols is two claims."""
    claims = Claims()
    names = [port_name("web", "", protocol) for protocol in Protocol]
    for name in names:
        claims.update(name, replace(BY_EXTERNAL_IP, name=name))

    assert [(SHARED,)] * 3 == [getattr(claims.effective(name), "external_ips", None) for name in names]


def test_one_address_listed_twice() -> None:
    """A Service may list its external IP as load balancer IP too, without being its own rival."""
    both = replace(BY_EXTERNAL_IP, name=A, load_balancer_ips=(SHARED,))
    claims = Claims()

    assert set() == claims.update(A, both)
    assert both == claims.effective(A)


def test_those_affected() -> None:
    """A change returns the other ports that claim what was taken or released, and no further ports."""
    claims = claims_of(BY_EXTERNAL_IP, replace(PLAN, external_ips=(OTHER,)))
    taken = claims.update(C, replace(PLAN, name=C, external_ips=(SHARED,)))
    moved = claims.update(C, replace(PLAN, name=C, external_ips=(OTHER,)))
    given_up = claims.update(C, None)

    assert ({A}, {A, B}, {B}) == (taken, moved, given_up)


def test_heir() -> None:
    """What the winner gives up goes to the next in order."""
    claims = claims_of(replace(BY_EXTERNAL_IP, created=OLD), replace(BY_EXTERNAL_IP, created=NEW))
    claims.update(C, replace(BY_EXTERNAL_IP, name=C))
    claim = Claim(SHARED, Protocol.TCP, 80)
    winners = [claims.winner(claim)]
    for name in (A, B, C):
        claims.update(name, None)
        winners.append(claims.winner(claim))

    assert [A, B, C, None] == winners


def test_port_that_is_gone() -> None:
    """Nothing is granted to a port without a plan."""
    claims = claims_of(BY_EXTERNAL_IP, BY_EXTERNAL_IP)
    claims.update(A, None)

    assert claims.effective(A) is None


@pytest.mark.parametrize(
    ("a", "b", "granted"),
    [
        pytest.param(replace(PLAN, health_check_node_port=30080), BY_NODE_PORT, (30080, 0), id="before a node port"),
        pytest.param(
            replace(PLAN, health_check_node_port=30080, created=NEW),
            replace(BY_NODE_PORT, created=OLD),
            (0, 30080),
            id="behind a node port",
        ),
        pytest.param(
            replace(PLAN, health_check_node_port=30080),
            replace(BY_NODE_PORT, name=port_name(protocol=Protocol.UDP), created=OLD),
            (30080, 30080),
            id="beside a UDP node port",
        ),
    ],
)
def test_health_check_node_ports_are_claims(a: ServicePlan, b: ServicePlan, granted: tuple[int, int]) -> None:
    """A health check node port and a TCP node port are one claim; the loser keeps the rest of its plan."""
    claims = Claims()
    b_name = replace(b.name, service=B.service)
    claims.update(A, replace(a, name=A))
    claims.update(b_name, replace(b, name=b_name))
    first, second = claims.effective(A), claims.effective(b_name)
    assert first is not None
    assert second is not None

    assert granted == (first.health_check_node_port, second.node_port)


def test_a_node_port_that_is_a_health_check_node_port_too() -> None:
    """A plan claims a port of the node once, and keeps it for both uses: only the health server is refused."""
    both = replace(PLAN, name=A, node_port=30080, health_check_node_port=30080)

    assert 1 == sum(claim == Claim(b"", Protocol.TCP, 30080) for claim in both.claims())
