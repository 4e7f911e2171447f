"""The localhost node ports that are relayed, and their endpoints."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from pyproxy.model.names import Protocol
from pyproxy.plan.localhost import RelayTarget, relay_changes, relay_target
from pyproxy.plan.service_plan import ServicePlan
from tests.unit.plan.building import PLAN, endpoints, port_name

CLUSTER, LOCAL = endpoints("10.244.1.11:8080", "10.244.2.12:8080"), endpoints("10.244.1.11:8080")
SERVED = replace(PLAN, node_port=30080, cluster_endpoints=CLUSTER, local_endpoints=LOCAL, any_usable=True)
MOVED = replace(SERVED, node_port=30081)
UDP = replace(SERVED, name=port_name(protocol=Protocol.UDP), serving_endpoints=frozenset(CLUSTER))
OWNER = PLAN.name.service
TARGET = RelayTarget(CLUSTER, None, OWNER)
T30080, T30081 = (Protocol.TCP, 30080), (Protocol.TCP, 30081)


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        pytest.param(SERVED, TARGET, id="policy Cluster"),
        pytest.param(replace(SERVED, external_local=True), RelayTarget(LOCAL, None, OWNER), id="policy Local"),
        pytest.param(replace(SERVED, affinity_seconds=10), RelayTarget(CLUSTER, 10, OWNER), id="session affinity"),
        pytest.param(replace(SERVED, node_port=0), None, id="no node port"),
        pytest.param(replace(SERVED, cluster_endpoints=()), None, id="no endpoint"),
        pytest.param(replace(SERVED, external_local=True, local_endpoints=()), None, id="no endpoint here"),
        pytest.param(UDP, RelayTarget(CLUSTER, None, UDP.name.service, frozenset(CLUSTER)), id="UDP"),
        pytest.param(replace(SERVED, name=port_name(protocol=Protocol.SCTP)), None, id="SCTP"),
    ],
)
def test_targets(plan: ServicePlan, expected: RelayTarget | None) -> None:
    """TCP and UDP node ports are relayed to the endpoints for external traffic, if there are any."""
    assert expected == relay_target(plan)


@pytest.mark.parametrize(
    ("taken", "expected"),
    [
        pytest.param([(None, SERVED)], {T30080: TARGET}, id="added"),
        pytest.param([(SERVED, None)], {T30080: None}, id="removed"),
        pytest.param([(SERVED, MOVED)], {T30080: None, T30081: TARGET}, id="moved"),
        pytest.param([(SERVED, MOVED), (MOVED, SERVED)], {T30080: TARGET, T30081: TARGET}, id="exchanged"),
        pytest.param([(None, PLAN), (PLAN, None)], {}, id="nothing to relay"),
    ],
)
def test_changes(taken: list[tuple[ServicePlan | None, ServicePlan | None]], expected: object) -> None:
    """What plans change is said once for each node port, also where ports go from one Service to another."""
    assert expected == relay_changes(taken)
