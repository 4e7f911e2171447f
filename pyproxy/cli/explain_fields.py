"""The field of a Service, or the setting, behind a rule or an element of kube-proxy or pyproxy.

Chains, sets and maps have fixed names in every mode, and a frontend's address says the rest.
"""

import re

from pyproxy.backends.explanation import Packet, Step
from pyproxy.plan.service_plan import ServicePlan

_NAME = re.compile(r'"(?:(?P<quoted>[^" ]+/[^" ]+) )|--comment (?P<word>[a-z0-9.-]+/[^" ]+)(?: |$)')
"""The comment with which a rule names its Service port: ``default/web:http cluster IP``."""


def step_field(step: Step, plan: ServicePlan | None, packet: Packet) -> str:
    """Return what decided a step, in the words of the API; empty for rules that are the same for every Service."""
    for place, rule, text in _FIELDS:
        if place.search(step.place) and rule.search(step.rule):
            return text or _frontend(plan, packet)
    return ""


def step_service(step: Step) -> str:
    """Return the Service port that the comment of a rule names, or nothing."""
    found = _NAME.search(step.rule)
    return (found["quoted"] or found["word"]) if found else ""


def _frontend(plan: ServicePlan | None, packet: Packet) -> str:
    if plan is None:
        return ""
    if packet.destination == plan.cluster_ip:
        return "spec.clusterIP"
    if packet.destination in plan.external_ips:
        return "spec.externalIPs"
    if packet.destination in plan.load_balancer_ips:
        return "status.loadBalancer.ingress"
    return f"spec.ports[].nodePort {plan.node_port}" if packet.port == plan.node_port else ""


_FIELDS = tuple(
    (re.compile(place), re.compile(rule), text)
    for place, rule, text in (
        (r"", r"^-P ", "policy of the chain"),
        (r"^(KUBE|PYPROXY|KPR)-.*FIREWALL$|^(KUBE|PYPROXY)-SOURCE-RANGES|^KUBE-FW-|^sources$", r"", "spec.loadBalancerSourceRanges"),
        (r"^(firewall|allowed-sources)$", r"", "spec.loadBalancerSourceRanges"),
        (r"^cluster-ips$", r"", "spec.clusterIP"),
        (r"^service-cidrs$", r"", "ServiceCIDR without a Service at this address"),
        (r"SERVICES$", r"has no local endpoints", "traffic policy Local"),
        (r"SERVICES$", r"has no endpoints", "no usable endpoint"),
        (r"^(nodeport-)?dropped$|NO-LOCAL", r"", "traffic policy Local"),
        (r"^(nodeport-)?rejected$", r"", "no usable endpoint"),
        (r"^(nodeport-)?external-cluster$", r"", "spec.externalTrafficPolicy: Cluster"),
        (r"^(nodeport-)?external-local$", r"", "spec.externalTrafficPolicy: Local"),
        (r"^KUBE-EXT-", r"--src-type LOCAL", "the source is this node"),
        (r"^KUBE-EXT-", r"-j KUBE-MARK-MASQ$", "spec.externalTrafficPolicy: Cluster"),
        (r"^KUBE-EXT-", r"-j KUBE-SVL-", "spec.externalTrafficPolicy: Local"),
        (r"^KUBE-EXT-", r" -(s|i) ", "the source is a pod"),
        (r"^KUBE-SV[CL]-", r"-j KUBE-MARK-MASQ$", "the source is not a pod"),
        (r"^KUBE-SV[CL]-", r"--rcheck", "spec.sessionAffinity: ClientIP"),
        (r"^KUBE-SEP-", r"-j KUBE-MARK-MASQ$", "the endpoint connects to itself"),
        (r"^KUBE-(SV[CL]|SEP)-|^(nodeport-)?(local-)?(endpoints|slots)$", r"", "an endpoint"),
        (r"^(nodeport-)?(local-)?timeouts$", r"", "spec.sessionAffinity: ClientIP"),
        (r"POSTROUTING$|^hairpin-connections$", r"--bytecode|hairpin", "the endpoint connects to itself"),
        (r"SERVICES$|NODE-?PORTS|^KUBE-SVC-EXTERNAL|^(nodeport-)?(local-)?counts$", r"", ""),
        (r"^virtual server", r"", ""),
        (r"^real server", r"", "an endpoint"),
    )
)  # fmt: skip


def shown_rule(step: Step) -> str:
    """Return a rule without the name of its chain, which has its own column, and without its comment."""
    text = re.sub(r'-m comment --comment (?:"(?:[^"\\]|\\.)*"|\S+) ?', "", step.rule)
    return text.replace(f"-A {step.place} ", "", 1).strip()
