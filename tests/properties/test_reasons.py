"""Reasons agree with plans: a port has one exactly if some of its traffic is rejected or dropped."""

from hypothesis import given
from hypothesis import strategies as st

from pyproxy.model.address import Family
from pyproxy.plan.reasons import ReasonCode, reasons
from pyproxy.plan.service_plan import ServicePlan, Verdict, plan_service
from tests.properties.strategies import Cluster, clusters

_LOCAL = {ReasonCode.NO_LOCAL_ENDPOINTS, ReasonCode.NO_LOCAL_ENDPOINTS_EXTERNAL}


def expected(plan: ServicePlan) -> set[ReasonCode | Verdict]:
    """Return what has to have a reason: everything, or the traffic of one policy."""
    if not plan.any_usable:
        return {Verdict.REJECT}
    found: set[ReasonCode | Verdict] = set()
    if plan.cluster_ip is not None and plan.internal_verdict is Verdict.DROP:
        found.add(ReasonCode.NO_LOCAL_ENDPOINTS)
    if plan.externally_accessible and plan.external_verdict is Verdict.DROP:
        found.add(ReasonCode.NO_LOCAL_ENDPOINTS_EXTERNAL)
    return found


@given(clusters(), st.sampled_from(Family))
def test_reasons_are_those_of_the_plan(cluster: Cluster, family: Family) -> None:
    """Ports that no endpoint can serve have a reason to reject, and ports without local endpoints one to drop."""
    for service in cluster.services:
        slices = tuple(sorted((one for one in cluster.slices if one.service == service.name), key=lambda one: one.name))
        plans = plan_service(service, slices, cluster.node, family)
        found = reasons(service, slices, cluster.node, family)

        assert plans.keys() == found.keys()
        for name, plan in plans.items():
            shown = {reason.code if reason.code in _LOCAL else reason.verdict for reason in found[name]}
            assert expected(plan) == shown, (plan, found[name])
