"""Checks of Services: those that do not work on this node."""

from pyproxy.decode.fields import shown
from pyproxy.doctor.finding import Finding, fail, info, require_objects, warn
from pyproxy.doctor.inputs import Inputs
from pyproxy.plan.reasons import ReasonCode
from pyproxy.plan.service_table import State
from pyproxy.plan.service_values import SyncState, is_problem

# A load balancer that avoids nodes without an endpoint, or that has no address yet, is often intended.
_INFORMATION = frozenset({ReasonCode.NO_LOCAL_ENDPOINTS_EXTERNAL, ReasonCode.LOAD_BALANCER_PENDING})


async def check_services(inputs: Inputs) -> list[Finding]:
    """Return one finding for each Service and cause; the causes are those of ``pyproxy services``."""
    # Keys remove repetitions: a Service has a row for each of its frontends.
    found: dict[tuple[str, str], Finding] = {}
    for service in filter(is_problem, require_objects(inputs).services):
        name = f"{shown(service.namespace)}/{shown(service.name)}"
        evidence = f"pyproxy services {name}"
        if service.sync is SyncState.QUARANTINED:
            text = f"the kernel refused a port of it: {service.sync_error}"
            fix = "see PyproxyServicesQuarantined in docs/operations.md"
            found.setdefault((name, text), fail(f"{name} is quarantined: {text}", evidence, fix))
        for reason in service.reasons:
            severity = info if reason.code in _INFORMATION else warn
            words = "may not work" if service.state is State.OK else "does not work"
            found.setdefault((name, reason.text), severity(f"{name} {words}: {reason.text}", evidence, reason.fix))
    return list(found.values())
