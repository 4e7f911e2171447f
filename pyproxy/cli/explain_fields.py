"""The field of a Service, or the setting, behind a rule or an element of kube-proxy or pyproxy.

Chains, sets and maps have fixed names in every mode, and a frontend's address says the rest.
"""

import re
from collections.abc import Iterable

from pyproxy.backends.explanation import Packet, Path, Step
from pyproxy.linux.uapi.netfilter_ipv4 import NfIpPri
from pyproxy.plan.service_plan import ServicePlan

_NAME = re.compile(r'"(?P<quoted>[a-z0-9.-]+/[^" ]+)[" ]|--comment (?P<word>[a-z0-9.-]+/[^" ]+)(?: |$)')
"""The comment with which a rule names its Service port: ``default/web:http cluster IP``."""
_CHAIN = re.compile(
    r"(?:service|external|firewall|endpoint)-[A-Z2-7]{8}-(?P<service>[^/ ]+/[^/ ]+)/\w+/(?P<port>[a-z0-9-]*)"
)
"""The name of a chain of kube-proxy in nftables mode; that of an endpoint goes on with two underscores."""


def step_field(step: Step, plan: ServicePlan | None, packet: Packet) -> str:
    """Return what decided a step, in the words of the API; empty for rules that are the same for every Service."""
    if step.place == "cluster-ips" and step.priority == NfIpPri.FILTER:
        return "a cluster IP without this port"
    found = (text for place, rule, text in _FIELDS if place.search(step.place) and rule.search(step.rule))
    text = next(found, None)
    if text != "" or plan is None:
        return text or ""
    # A rule that matches a frontend does not say which field of the Service has it: the packet's destination does.
    if packet.destination == plan.cluster_ip:
        return "spec.clusterIP"
    if packet.destination in plan.external_ips:
        return "spec.externalIPs"
    if packet.destination in plan.load_balancer_ips:
        return "status.loadBalancer.ingress"
    return f"spec.ports[].nodePort {plan.node_port}" if packet.port == plan.node_port else ""


def step_service(step: Step) -> str:
    """Return the Service port that the comment of a rule names, or nothing."""
    if found := _NAME.search(step.rule):
        return found["quoted"] or found["word"]
    if found := _CHAIN.search(f"{step.rule} {step.place}"):
        return ":".join(filter(None, (found["service"], found["port"])))
    return ""


def service_of(paths: Iterable[Path]) -> str:
    """Return the Service that rules on a path belong to; empty if none does."""
    # From the end: the last rules of a path belong to one Service, the first ones are shared by all.
    return next((name for path in paths for step in reversed(path.steps) if (name := step_service(step))), "")


# The first entry that matches counts, so a narrow pattern comes before a wide one. The names are those of the chains and
# sets of pyproxy in all modes and of kube-proxy, whose rules --rules explains as well.
_FIELDS = tuple(
    (re.compile(place), re.compile(rule), text)
    for place, rule, text in (
        (r"", r"^-P |^policy drop$", "policy of the chain"),
        (r"^virtual server", r"^no real server$", "no usable endpoint"),
        (r"^KUBE-PROXY-FIREWALL$", r"NO-LOCAL", "traffic policy Local"),
        (r"^KUBE-IPVS-FILTER$", r"-VIP dst -j REJECT", "a cluster IP without this port"),
        (r"^KUBE-SERVICES$", r"-CLUSTER-IP dst,dst -j KUBE-MARK-MASQ", "the source is not a pod"),
        (r"^KUBE-SERVICES$", r"-EXTERNAL dst,dst -j KUBE-MARK-MASQ", "spec.externalTrafficPolicy: Cluster"),
        (r"^(?!KUBE-FIREWALL$)(KUBE|PYPROXY|KPR)-.*FIREWALL$|^(KUBE|PYPROXY)-SOURCE-RANGES|^KUBE-FW-|^sources$", r"", "spec.loadBalancerSourceRanges"),
        (r"^(firewall|allowed-sources)$", r"", "spec.loadBalancerSourceRanges"),
        (r"^firewall-ips$|^firewall-[A-Z2-7]{8}-", r"", "spec.loadBalancerSourceRanges"),
        (r"^(cluster-ips|service-cidrs)-check$|^unknown-ports$", r"^ip6? daddr \S+/\d+ drop", "ServiceCIDR without a Service at this address"),
        (r"^no-endpoint-(services|nodeports)$", r": drop", "traffic policy Local"),
        (r"^no-endpoint-(services|nodeports)$", r"", "no usable endpoint"),
        (r"^reject-chain$", r"", "no usable endpoint"),
        (r"^service-(ips|nodeports)$", r"", ""),
        (r"^external-[A-Z2-7]{8}-", r"masquerade local", "the source is this node"),
        (r"^external-[A-Z2-7]{8}-", r"short-circuit pod", "the source is a pod"),
        (r"^external-[A-Z2-7]{8}-", r"meta mark set", "spec.externalTrafficPolicy: Cluster"),
        (r"^services$", r"masquerade clusterIP|meta mark set", "the source is not a pod"),
        (r"^(service|endpoint)-[A-Z2-7]{8}-", r"", "an endpoint"),
        (r"^affinity-", r"", "spec.sessionAffinity: ClientIP"),
        (r"^pins$", r"", "spec.sessionAffinity: ClientIP"),
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
