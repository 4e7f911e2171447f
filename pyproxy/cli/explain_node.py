"""``explain`` on a node: what the rules in the kernel do, and whether that is what the agent intends."""

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from fractions import Fraction
from itertools import zip_longest
from typing import NamedTuple

from pyproxy.backends.explanation import NOT_EVALUATED, Fate, Host, Packet, Path, Step
from pyproxy.backends.hooks import UNKNOWN_INTERFACE
from pyproxy.backends.registry import open_dumper
from pyproxy.cli.explain_ends import KnownNames, NoSuchServiceError, common_family, packet_of
from pyproxy.cli.explain_fields import service_of, shown_rule
from pyproxy.cli.explain_live import KnownByAgent, Live, interface_towards, known_by_agent, read_live
from pyproxy.cli.explain_reasons import missing_service, with_foreign_reason, with_objects
from pyproxy.cli.explain_report import Explanation, MissingService
from pyproxy.cli.explain_rules import NodeRules, comparable
from pyproxy.cli.objects import OfflineCluster
from pyproxy.config.config import Config
from pyproxy.linux.capabilities import require_capabilities
from pyproxy.linux.routes import routes
from pyproxy.linux.sysctl import read_sysctl
from pyproxy.model.address import Family, family_of, ip_text, is_loopback
from pyproxy.model.endpoint import Endpoint
from pyproxy.model.node import Node
from pyproxy.node.context import NodeContext
from pyproxy.node.node_name import own_node_name
from pyproxy.plan.planner import final_plans

_FORWARDING = {Family.IPV4: "net/ipv4/ip_forward", Family.IPV6: "net/ipv6/conf/all/forwarding"}
_ROUTE_LOCALNET = "net/ipv4/conf/all/route_localnet"
_ROUTING = "routing"
"""Hook of steps that no rule causes."""


class Difference(NamedTuple):
    """A difference between intended rules and those in the kernel."""

    text: str
    extra: Step | None = None
    """What the kernel has and should not have; None: it lacks something."""


def explain_node(
    config: Config, source: str, destination: str, in_interface: str | None
) -> Explanation | MissingService:
    """Explain the rules in the kernel of this node.

    Raises:
        ApplyError: the kernel cannot be read.
        ConfigError: the arguments cannot be used.
        RightsError: this process may not read the kernel's rules.
    """
    require_capabilities("explain")
    agent = known_by_agent(config)
    live = asyncio.run(read_live())
    node = agent.objects.node if agent else Node(name=own_node_name(config), ips=tuple(sorted(live.host.ips)))
    # Every address of the node counts as the node, the best known first.
    own = replace(node, ips=(*node.ips, *sorted(live.host.ips - live.rules.service_ips - set(node.ips))))
    names = KnownNames(agent.tracker.services if agent else {}, (own,), (), is_live=True)
    client = names.source(source)
    try:
        target = names.destination(destination, own.ips)
    except NoSuchServiceError as error:
        if agent is None:
            reason = "no agent answers, and the rules in the kernel have no names of Services as destinations"
            return MissingService(str(error.name), reason, "give the address and port: ADDRESS:PORT")
        return MissingService(str(error.name), *missing_service(error.name, agent.unserved, names.services))
    arrives = in_interface or interface_towards(client.ips[common_family(client, target)]) or UNKNOWN_INTERFACE
    packet = packet_of(client, target, own, arrives)
    found = tuple(_routed(packet, path, live.host) for path in live.rules.interpret(packet, live.host))
    explanation = Explanation(packet, client, node.name, live.rules.mode or "no proxy", found, read_at=live.read_at)
    if agent is None:
        explained = with_foreign_reason(replace(explanation, service=service_of(found)))
        if not live.rules.mode:
            reason, fix = (
                "the kernel has no rules of a service proxy",
                "start pyproxy; systemctl status pyproxy says more",
            )
            explained = replace(explained, reason=reason, fix=fix)
        return _with_routing_reason(explained)
    return _compared(explanation, agent, live)


def _compared(explanation: Explanation, agent: KnownByAgent, live: Live) -> Explanation:
    """Return an explanation with what the agent intends."""
    packet, node = explanation.packet, agent.objects.node
    family = family_of(packet.source)
    cluster = OfflineCluster(agent.tracker, node, (node,), tuple(agent.unserved), 0)
    plans = final_plans(agent.tracker, node, family)
    context = NodeContext(
        node=node,
        local_ips=live.host.ips - live.rules.service_ips,
        service_cidrs=agent.tracker.take_service_cidrs(),
    )
    dumper = open_dumper(agent.config)
    intended = dumper.interpreter(family, context, plans)(packet, replace(live.host, ips=frozenset(context.local_ips)))
    difference = first_difference(intended, explanation.paths, live.rules)
    is_served = intended[0].fate is Fate.FORWARDED and not explanation.paths[0].endpoint
    if difference and live.rules.ipvs and is_served and not live.host.is_local(packet.destination):
        address = ip_text(packet.destination)
        difference = Difference(f"the kernel lacks the address {address} of the Service (ip route show table local)")
    found = replace(
        with_objects(explanation, cluster, plans.values(), (), live.host),
        mode=agent.config.proxy_mode.value,
        is_intended=difference is None,
        difference=difference.text if difference else "",
    )
    problem = agent.sync_problems.get(found.service.partition(":")[0], "")
    if problem:
        found = replace(found, difference=f"{found.difference or 'none yet'}; the Service is {problem}")
    if difference and found.fate is not Fate.FORWARDED and intended[0].fate is not found.fate:
        found = _with_difference_reason(found, difference, problem)
    return _with_routing_reason(found)


def _with_difference_reason(found: Explanation, difference: Difference, problem: str) -> Explanation:
    if problem:
        return replace(
            found,
            reason=f"the kernel does not have the rules that pyproxy intends: the Service is {problem}",
            fix="correct the Service, or free what it needs; pyproxy retries",
        )
    step = difference.extra
    if step is None:
        return replace(
            found,
            reason=f"the rules in the kernel are not complete: {difference.text}",
            fix="pyproxy repairs its rules at the next full sync; a restart repairs them now",
        )
    if found.fate is Fate.UNCHANGED and "notrack" not in step.rule.lower():
        return replace(
            found,
            reason=f"the rule {shown_rule(step)} of the chain {step.place} comes before those of pyproxy",
            fix="remove that rule, or exclude the addresses of Services from it",
        )
    return with_foreign_reason(found)


def _words(paths: Iterable[Path]) -> str:
    return " or ".join(dict.fromkeys(path.fate.value for path in paths))


def first_difference(intended: Iterable[Path], live: Iterable[Path], rules: NodeRules) -> Difference | None:
    """Return the first step in which the kernel differs from what is intended; None if the packet fares the same.

    Args:
        intended: what becomes of the packet by the intended rules.
        live: what becomes of it by those in the kernel.
        rules: those in the kernel. A step that is not on the live path may be there nevertheless.
    """
    wanted, present = tuple(intended), tuple(live)
    # An affinity entry selects one of the endpoints.
    is_pinned = any(path.affinity_entry for path in present)
    if _ends(wanted) == _ends(present) or (is_pinned and _ends(present).keys() <= _ends(wanted).keys()):
        return None
    wanted_steps, present_steps = _steps(wanted), _steps(present)
    for one, other in zip_longest(wanted_steps, present_steps):
        if other is not None and other not in wanted_steps:
            extra = present_steps[other]
            return Difference(f"the kernel has in {extra.place}: {shown_rule(extra)}", extra)
        if one is not None and one not in present_steps and not rules.has_step(*one):
            return Difference(f"the kernel lacks in {one[1]}: {shown_rule(wanted_steps[one])}")
    return Difference(f"intended: {_words(wanted)}; in the kernel: {_words(present)}")


def _ends(paths: Iterable[Path]) -> dict[tuple[Fate, Endpoint | None, bool], Fraction]:
    ends: dict[tuple[Fate, Endpoint | None, bool], Fraction] = {}
    for path in paths:
        end = path.fate, path.endpoint, path.is_masqueraded
        ends[end] = ends.get(end, Fraction(0)) + path.share
    return ends


def _steps(paths: Iterable[Path]) -> dict[tuple[str, str, str], Step]:
    """Return the steps of all paths, each once, by hook, place and rule."""
    return {
        (step.hook, step.place, comparable(step.rule)): step
        for path in paths
        for step in path.steps
        if not step.rule.startswith(NOT_EVALUATED)
    }


def _routed(packet: Packet, path: Path, host: Host) -> Path:
    """Return a path with what routing does after the rules."""
    if path.fate is not Fate.FORWARDED or path.endpoint is None or host.is_local(path.endpoint.ip):
        return path
    ip = path.endpoint.ip
    family = family_of(ip)
    is_sent_by_ipvs = any(step.hook == "ipvs" for step in path.steps)
    fitting = [route for route in routes(family) if ip in route.network]
    # As in the kernel, the longest prefix wins.
    best = max(fitting, key=lambda route: route.network.prefix, default=None)
    # Routes that reject or drop packets have no device (`fib_route_seq_show`).
    if best is None or best.device == "*":
        step = Step(_ROUTING, None, "routes", f"no usable route to {ip_text(ip)}")
        return replace(path, fate=Fate.REJECTED, steps=(*path.steps, step))
    if is_loopback(packet.destination) and family is Family.IPV4 and read_sysctl(_ROUTE_LOCALNET) == 0:
        step = Step(_ROUTING, None, _ROUTE_LOCALNET.replace("/", "."), "0: no packet from 127.0.0.0/8 leaves the node")
        return replace(path, fate=Fate.DROPPED, steps=(*path.steps, step))
    # IPVS sends packets to real servers from LOCAL_OUT (`ip_vs_nat_xmit`), where the kernel does not check forwarding.
    if packet.in_interface and not is_sent_by_ipvs and read_sysctl(_FORWARDING[family]) == 0:
        step = Step(_ROUTING, None, _FORWARDING[family].replace("/", "."), "0: no packet is forwarded to another host")
        return replace(path, fate=Fate.DROPPED, steps=(*path.steps, step))
    return path


def _with_routing_reason(found: Explanation) -> Explanation:
    last = found.paths[0].steps[-1] if found.paths and found.paths[0].steps else None
    if last is None or last.hook != _ROUTING:
        return found
    if last.place == "routes":
        return replace(
            found,
            reason=f"the node has no usable route to the endpoint {found.paths[0].endpoint}",
            fix="check the network plugin: ip route get ADDRESS",
        )
    return replace(
        found,
        reason=f"{last.place} is {last.rule}",
        fix=f"sysctl -w {last.place}=1; pyproxy doctor finds more of this kind",
    )
