"""The list of all checks, and how they run."""

import asyncio
from dataclasses import replace

from pyproxy.doctor import agent, conntrack, foreign_rules, kernel, node, rules, services
from pyproxy.doctor.finding import Check, Finding, NotCheckedError, Severity
from pyproxy.doctor.inputs import Inputs
from pyproxy.errors import PyproxyError

CHECKS = (
    Check("forwarding", "IP forwarding", kernel.check_forwarding),
    Check("rp-filter", "reverse path filter", kernel.check_reverse_path_filter),
    Check("bridge-netfilter", "bridge netfilter", kernel.check_bridge_netfilter),
    Check("hairpin-mode", "hairpin mode of bridge ports", kernel.check_hairpin_mode),
    Check("mtu", "MTU of pods and of the way to other nodes", kernel.check_mtu),
    Check("local-ports", "local port range", kernel.check_local_ports),
    Check("route-localnet", "node ports on 127.0.0.1", kernel.check_route_localnet),
    Check("strict-arp", "strict ARP in IPVS mode", kernel.check_strict_arp),
    Check("kernel-features", "kernel features that the proxy mode needs", kernel.check_features),
    Check("capabilities", "capabilities of this command", kernel.check_capabilities),
    Check("conntrack-usage", "usage of the connection tracking table", conntrack.check_usage),
    Check("conntrack-losses", "packets that connection tracking loses", conntrack.check_losses),
    Check("iptables-variant", "variants of iptables", rules.check_variant),
    Check("stale-rules", "rules of other proxies and modes", rules.check_stale_rules),
    Check("forward-policy", "FORWARD policy", rules.check_forward_policy),
    Check("foreign-jumps", "host ports and other rules before those of Services", rules.check_foreign_jumps),
    Check("jumps", "jumps to the chains of Services", rules.check_jumps),
    Check("foreign-rules", "rules of other programs for traffic of Services", foreign_rules.check_foreign_rules),
    Check("routes", "routes to endpoints and cluster IPs", node.check_routes),
    Check("pod-detection", "recognition of traffic from pods", node.check_pod_detection),
    Check("node-name", "name of the node", node.check_node_name, needs_node=False),
    Check("node-ip", "address of the node", node.check_node_ip),
    Check("agent", "pyproxy running", agent.check_running),
    Check("last-sync", "last sync", agent.check_last_sync),
    Check("health-ports", "health check node ports", agent.check_health_ports),
    Check("watches", "watches on the API server", agent.check_watches),
    Check("quarantine", "quarantined Service ports", agent.check_quarantine),
    Check("other-proxy", "other proxies running", agent.check_other_proxy),
    Check("services", "Services that do not work", services.check_services, needs_node=False),
    Check("external-ips", "external IPs that are addresses of nodes", node.check_external_ips, needs_node=False),
)


async def examine(inputs: Inputs, checks: tuple[Check, ...] = CHECKS) -> list[Finding]:
    """Run checks and return their findings, the most serious first; a check without findings returns one that is ok."""
    # At the same time, because some wait: for an answer of the agent, or for counters to change.
    found = await asyncio.gather(*(_run(check, inputs) for check in checks))
    order = list(Severity)[::-1]
    return sorted((finding for each in found for finding in each), key=lambda finding: order.index(finding.severity))


async def _run(check: Check, inputs: Inputs) -> list[Finding]:
    try:
        found = await check.run(inputs)
    except NotCheckedError as error:
        found = [Finding(Severity.INFO, f"not checked: {check.subject}: {error}", is_skipped=True)]
    except (PyproxyError, OSError, ValueError) as error:
        # The rights or a program are missing: the result of the command would otherwise look complete.
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        found = [Finding(Severity.WARN, f"not checked: {check.subject}: {reason}")]
    return [replace(each, check=check.name) for each in found or [Finding(Severity.OK, check.subject)]]
