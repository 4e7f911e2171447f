"""Which localhost node ports are relayed, and to which endpoints."""

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
TARGET = RelayTarget(CLUSTER, None)


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        pytest.param(SERVED, TARGET, id="policy Cluster"),
        pytest.param(replace(SERVED, external_local=True), RelayTarget(LOCAL, None), id="policy Local"),
        pytest.param(replace(SERVED, affinity_seconds=10), RelayTarget(CLUSTER, 10), id="session affinity"),
        pytest.param(replace(SERVED, node_port=0), None, id="no node port"),
        pytest.param(replace(SERVED, cluster_endpoints=()), None, id="no endpoint"),
        pytest.param(replace(SERVED, external_local=True, local_endpoints=()), None, id="no endpoint here"),
        pytest.param(replace(SERVED, name=port_name(protocol=Protocol.UDP)), None, id="UDP"),
        pytest.param(replace(SERVED, name=port_name(protocol=Protocol.SCTP)), None, id="SCTP"),
    ],
)
def test_targets(plan: ServicePlan, expected: RelayTarget | None) -> None:
    """TCP node ports are relayed to the endpoints for external traffic, if there are any."""
    assert expected == relay_target(plan)


@pytest.mark.parametrize(
    ("taken", "expected"),
    [
        pytest.param([(None, SERVED)], {30080: TARGET}, id="added"),
        pytest.param([(SERVED, None)], {30080: None}, id="removed"),
        pytest.param([(SERVED, MOVED)], {30080: None, 30081: TARGET}, id="moved"),
        pytest.param([(SERVED, MOVED), (MOVED, SERVED)], {30080: TARGET, 30081: TARGET}, id="exchanged"),
        pytest.param([(None, PLAN), (PLAN, None)], {}, id="nothing to relay"),
    ],
)
def test_changes(taken: list[tuple[ServicePlan | None, ServicePlan | None]], expected: object) -> None:
    """What plans change is said once for each node port, also where ports go from one Service to another."""
    assert expected == relay_changes(taken)
