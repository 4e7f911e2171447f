"""Checks of Services: those that do not work on this node."""

from pyproxy.decode.fields import shown
from pyproxy.doctor.finding import Finding, fail, info, require_objects, warn
from pyproxy.doctor.inputs import Inputs
from pyproxy.model.address import parse_network
from pyproxy.plan.reasons import ReasonCode
from pyproxy.plan.service_values import ServiceValues, SyncState, is_problem

# Sources that no client on a network has: RFC 1122 ("this host", loopback), RFC 5771 and RFC 4291 (multicast).
_NO_CLIENTS = tuple(map(parse_network, ("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/4", "::1/128", "ff00::/8")))


async def check_services(inputs: Inputs) -> list[Finding]:
    """Return one finding for each Service and cause; the causes are those of ``pyproxy services``."""
    # Keys remove repetitions: a Service has a row for each of its frontends.
    found: dict[tuple[str, str], Finding] = {}
    for service in filter(is_problem, require_objects(inputs).services):
        name = _name(service)
        evidence = f"pyproxy services {name}"
        if service.sync is SyncState.QUARANTINED:
            text = f"the kernel refused a port of it: {service.sync_error}"
            fix = "see PyproxyServicesQuarantined in docs/operations.md"
            found.setdefault((name, text), fail(f"{name} is quarantined: {text}", evidence, fix))
        for reason in service.reasons:
            # With externalTrafficPolicy: Local most nodes drop the traffic, and load balancers avoid them.
            severity = info if reason.code is ReasonCode.NO_LOCAL_ENDPOINTS_EXTERNAL else warn
            found.setdefault(
                (name, reason.text), severity(f"{name} does not work: {reason.text}", evidence, reason.fix)
            )
    return list(found.values())


async def check_source_ranges(inputs: Inputs) -> list[Finding]:
    """Find load balancer IPs that no client may use."""
    found: dict[str, Finding] = {}
    for service in require_objects(inputs).services:
        ranges = [parse_network(text) for text in service.source_ranges]
        if ranges and all(any(each.ip in one and each.prefix >= one.prefix for one in _NO_CLIENTS) for each in ranges):
            found[_name(service)] = warn(
                f"{_name(service)}: no client has an address in the source ranges {', '.join(map(str, ranges))}",
                "spec.loadBalancerSourceRanges",
                "add the ranges of the clients to spec.loadBalancerSourceRanges",
            )
    return list(found.values())


def _name(service: ServiceValues) -> str:
    return f"{shown(service.namespace)}/{shown(service.name)}"
