"""Why a packet is not forwarded: from the objects if they say so, else the rule that ended it. Pure."""

from collections.abc import Collection, Iterable
from dataclasses import replace

from pyproxy.backends.explanation import Fate, Host, Packet
from pyproxy.cli.explain_fields import shown_rule, step_field
from pyproxy.cli.explain_report import Explanation
from pyproxy.cli.objects import OfflineCluster
from pyproxy.manifests.pods import Pod
from pyproxy.model.address import ip_text, is_loopback
from pyproxy.model.names import NamespacedName
from pyproxy.model.suggestion import suggestion
from pyproxy.model.unserved import UnservedService
from pyproxy.plan.reasons import Reason, ReasonCode, no_packet_path, proxied_reason, reasons, source_range_reason
from pyproxy.plan.service_plan import Claim, ServicePlan, Verdict
from pyproxy.plan.topology import merge_slices


def with_objects(
    found: Explanation,
    cluster: OfflineCluster,
    plans: Collection[ServicePlan],
    pods: Collection[Pod],
    host: Host,
) -> Explanation:
    """Return an explanation with the Service, the places of its endpoints, and the reason if the packet is not forwarded."""
    plan = addressed_plan(found.packet, plans, host)
    service = str(plan.name) if plan else ""
    found = replace(found, service=service, plan=plan, places=endpoint_places(cluster, plan, pods))
    if found.fate is Fate.FORWARDED:
        return _with_notes(found, cluster, pods)
    reason = _reason(found, cluster)
    if reason is not None:
        return replace(found, reason=reason.text, fix=reason.fix)
    ip, at = found.packet.destination, ip_text(found.packet.destination)
    if plan is None:
        # The address is right and the port is wrong: the ports of the Service are the best hint.
        near = [each for each in plans if ip in (each.cluster_ip, *each.external_ips, *each.load_balancer_ips)]
        if near:
            ports = sorted(f"{each.port}/{each.protocol.name}" for each in near)
            word = "port" if len(ports) == 1 else "ports"
            text = f"{at} is an address of {near[0].name.service}, which has only the {word} {', '.join(ports)}"
            return replace(found, reason=text, fix=f"connect to port {ports[0]}")
        if found.fate is Fate.UNCHANGED:
            return _without_service(found, cluster, pods)
    elif found.fate is Fate.UNCHANGED and found.packet.port == plan.node_port:
        word = "localhost" if is_loopback(ip) else at
        return replace(
            found,
            reason=f"node ports are not served on {at}",
            fix=f"connect to another address of the node, or add {word} to --nodeport-addresses",
        )
    return with_foreign_reason(found)


def _with_notes(found: Explanation, cluster: OfflineCluster, pods: Iterable[Pod]) -> Explanation:
    """Add what the objects say about a connection that fails although it is forwarded."""
    plan, notes = found.plan, list[str]()
    if plan is None:
        return found
    endpoints = {path.endpoint for path in found.paths if path.endpoint}
    candidates = merge_slices(
        cluster.tracker.slices(plan.name.service), plan.family, plan.name.port, plan.name.protocol
    )
    ready = {endpoint: item for endpoint, item in candidates.items() if item.ready}
    hints = {hint for each in endpoints & ready.keys() for hint in (*ready[each].node_hints, *ready[each].zone_hints)}
    # Hints for nodes come before those for zones, as in kube-proxy.
    place = next((each for each in (cluster.node.name, cluster.node.zone) if each in hints), "")
    if place and endpoints < ready.keys():
        notes.append(
            f"{len(endpoints)} of {len(ready)} endpoints: topology hints restrict {cluster.node.name} to {place}"
        )
    # A container may listen on ports that its pod does not declare, so this is only a note. A pod without any declares
    # nothing that could differ.
    by_ip = {ip: pod for pod in pods if pod.ports for ip in pod.ips}
    for endpoint in sorted(endpoints):
        pod, port = by_ip.get(endpoint.ip), f"{endpoint.port}/{plan.name.protocol.name}"
        if pod is not None and port not in pod.ports:
            notes.append(f"pod {pod.name} declares the ports {', '.join(pod.ports)}, not {port}")
    return replace(found, reason="; ".join(notes))


def addressed_plan(packet: Packet, plans: Iterable[ServicePlan], host: Host) -> ServicePlan | None:
    """Return the plan of the Service port to which a packet is addressed."""
    # An address of a Service comes before the node ports, as in the rules of every mode.
    at_address = Claim(packet.destination, packet.protocol, packet.port)
    at_node = Claim(b"", packet.protocol, packet.port)
    is_local = host.is_local(packet.destination)
    node_port = None
    for plan in plans:
        claims = set(plan.claims())
        if at_address in claims:
            return plan
        if is_local and at_node in claims and plan.node_port == packet.port:
            node_port = plan
    return node_port


def endpoint_places(cluster: OfflineCluster, plan: ServicePlan | None, pods: Iterable[Pod]) -> dict[bytes, str]:
    """Return pod and node of each endpoint of a Service, by address."""
    if plan is None:
        return {}
    by_ip = {ip: pod for pod in pods for ip in pod.ips}
    found: dict[bytes, str] = {}
    for each in cluster.tracker.slices(plan.name.service):
        for item in each.endpoints:
            pod = by_ip.get(item.ip)
            node = item.node_name or (pod.node_name if pod else "")
            words = [f"pod {pod.name}"] if pod else []
            found[item.ip] = " ".join([*words, *([f"on {node}"] if node else [])])
    return found


def _reason(explanation: Explanation, cluster: OfflineCluster) -> Reason | None:
    """Return why a Service port does not forward a packet, if the objects say so."""
    plan, packet = explanation.plan, explanation.packet
    if plan is None:
        return None
    service = cluster.tracker.services[plan.name.service]
    found = reasons(service, cluster.tracker.slices(service.name), cluster.node, plan.family).get(plan.name, ())
    wanted = Verdict.REJECT if explanation.fate is Fate.REJECTED else Verdict.DROP
    # Source ranges restrict load balancer IPs only; the other addresses of the Service stay open to all sources.
    if packet.destination in plan.load_balancer_ips and wanted is Verdict.DROP:
        reason = source_range_reason(plan.source_ranges, packet.source)
        if reason is not None:
            return reason
    local = (
        ReasonCode.NO_LOCAL_ENDPOINTS
        if packet.destination == plan.cluster_ip
        else ReasonCode.NO_LOCAL_ENDPOINTS_EXTERNAL
    )
    return next(
        (each for each in found if each.verdict is wanted and (wanted is Verdict.REJECT or each.code is local)), None
    )


def _without_service(explanation: Explanation, cluster: OfflineCluster, pods: Iterable[Pod]) -> Explanation:
    """Add what the destination is."""
    ip = explanation.packet.destination
    if any(ip in service.proxied_ips for service in cluster.tracker.services.values()):
        found = proxied_reason(ip)
        return replace(explanation, reason=found.text, fix=found.fix)
    pod = next((pod for pod in pods if ip in pod.ips), None)
    if pod is not None:
        reason = f"{ip_text(ip)} is the address of pod {pod.name}; packets to pods are not changed"
        return replace(explanation, reason=reason, fix="check the network plugin and NetworkPolicies")
    return replace(
        explanation,
        reason="no Service has this address, port and protocol on this node",
        fix="compare with pyproxy services",
    )


_RULE_REASONS = {
    "spec.loadBalancerSourceRanges": (
        "the source is not in spec.loadBalancerSourceRanges",
        "add the client's range to spec.loadBalancerSourceRanges, or use another address of the Service",
    ),
    "traffic policy Local": (
        "the Service has no endpoint on this node, and its traffic policy is Local",
        "send the client to a node with an endpoint, or set the traffic policy to Cluster",
    ),
    "no usable endpoint": (
        "the Service has no usable endpoint",
        "kubectl get endpointslices -A shows its endpoints; kubectl describe pod says why they are not ready",
    ),
    "a cluster IP without this port": (
        "the destination is a cluster IP, but its Service does not have this port and protocol",
        "kubectl get services -A shows the ports",
    ),
    "ServiceCIDR without a Service at this address": (
        "no Service has this cluster IP",
        "kubectl get services -A shows the cluster IPs; clients may have cached an old one",
    ),
    "policy of the chain": (
        "no rule accepts the packet, and the policy of the chain {place} is to drop it",
        "add a rule that accepts it, or change the policy; pyproxy doctor says more",
    ),
}
"""Reason and fix by the field behind the last rule."""


def with_foreign_reason(explanation: Explanation) -> Explanation:
    """Name the rule that ended the packet, if no object explains it."""
    untracked = next((step for step in explanation.paths[0].steps if "notrack" in step.rule.lower()), None)
    if explanation.fate is Fate.UNCHANGED and untracked is not None:
        return replace(
            explanation,
            reason=f"the rule {shown_rule(untracked)} of the chain {untracked.place} turns off connection tracking for this"
            " packet, so no rule can change its destination",
            fix="remove that rule, or exclude the addresses of Services from it",
        )
    if explanation.fate is Fate.UNCHANGED:
        return replace(
            explanation,
            reason="no rule changes the destination of this packet",
            fix="check address, port and protocol (kubectl get services -A), and whether these rules are of the right node",
        )
    if explanation.fate is Fate.FORWARDED or not explanation.paths[0].steps:
        return explanation
    step = explanation.paths[0].steps[-1]
    field = step_field(step, explanation.plan, explanation.packet)
    if field in _RULE_REASONS:
        reason, fix = _RULE_REASONS[field]
        return replace(explanation, reason=reason.format(place=step.place), fix=fix)
    return replace(
        explanation,
        reason=f"{explanation.fate.value} by the rule {shown_rule(step)} of the chain {step.place}",
        fix="change that rule, or accept the packet in a rule before it",
    )


def missing_service(
    name: NamespacedName, unserved: Iterable[UnservedService], known: Iterable[NamespacedName]
) -> tuple[str, str]:
    """Return why a Service has no rules, and what to do."""
    for each in unserved:
        if each.name == name and each.kind is not None:
            reason = no_packet_path(each.kind)
            return reason.text, reason.fix
        if each.name == name:
            return f"the Service is not valid: {each.problem}", "correct the object"
    known = list(known)
    elsewhere = [str(each) for each in known if each.name == name.name]
    hint = f" (did you mean {elsewhere[0]}?)" if elsewhere else suggestion(str(name), map(str, known))
    return f"there is no such Service{hint}", "kubectl get services -A"
