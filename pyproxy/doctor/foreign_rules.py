"""Checks of rules of other programs that drop, reject or change traffic of Services, or keep it from being translated."""

import asyncio
import json
import re
import shutil
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass

from pyproxy.backends.iptables import chain_names as names
from pyproxy.backends.iptables.capabilities import chain_rules
from pyproxy.backends.iptables.ruleset import FILTER, IPVS_TABLES, MANGLE, NAT, ChainKey
from pyproxy.config.config import ProxyMode
from pyproxy.doctor.finding import Finding, fail, require_objects, warn
from pyproxy.doctor.inputs import Inputs, Objects
from pyproxy.doctor.packet_rules import Effect, Flow, Rule, Table, iptables_chains, nft_chains
from pyproxy.doctor.rules import HOST_PORTS, iptables_tables, saved_table
from pyproxy.errors import ApplyError
from pyproxy.linux.addresses import local_addresses
from pyproxy.linux.command import run
from pyproxy.linux.iptables_programs import Variant, program
from pyproxy.linux.routes import routes
from pyproxy.model.address import Family, family_of, parse_ip, socket_text

_RAW = "raw"
# Prefixes of chains of pyproxy, kube-proxy and the kubelet.
_OURS = ("KUBE-", "PYPROXY-")
_OUR_TABLES = ("pyproxy", "kube-proxy")
_FILTERS = frozenset({Effect.DROP, Effect.REJECT})
_ACTIONS = {
    Effect.DROP: "drops",
    Effect.REJECT: "rejects",
    Effect.NOTRACK: "turns off connection tracking, and so translation, for",
    Effect.TRANSLATE: "translates",
    Effect.ACCEPT: "accepts before its translation the",
    Effect.MASQUERADE: "hides the client address of",
    Effect.MARK: "sets the mark {mark}, which selects masquerading, on",
}
# Chains of the nat table that are read: printing all of it takes seconds on a node with many Services.
_MOST_CHAINS = 30


@dataclass(frozen=True, slots=True)
class _Hook:
    """A base chain of another program, or the part of one that comes before ours."""

    chains: Mapping[str, list[Rule]]
    start: str
    kind: str
    """The name of the hook in lower case, such as prerouting."""
    wanted: Collection[Effect]
    evidence: str
    families: tuple[Family, ...]
    skipped: tuple[str, ...] = ()
    listing: tuple[str, ...] = ()
    """The command that prints the rules with their handles; empty if the key of a rule is its text."""


@dataclass(frozen=True, slots=True)
class _Traffic:
    """The first packets of connections to Services, before and after the translation."""

    before: tuple[Flow, ...]
    after: tuple[Flow, ...]
    node: tuple[Flow, ...]
    """To programs of the node itself: health checks, and endpoints on the host network."""

    def at(self, kind: str) -> tuple[Flow, ...]:
        """Return the packets that pass a hook."""
        if kind == "input":
            return self.node
        return self.after if kind in {"forward", "postrouting"} else (*self.before, *self.after)


async def check_foreign_rules(inputs: Inputs) -> list[Finding]:
    """Find the rules that decide about traffic of Services instead of ours. Rules that cannot be evaluated are left out."""
    objects = require_objects(inputs)
    local = await asyncio.to_thread(local_addresses)
    traffic = _traffic(objects, local, is_ipvs=inputs.mode == ProxyMode.IPVS.value)
    found: dict[tuple[str, str], tuple[Rule, _Hook, list[Flow]]] = {}
    # Interfaces by which traffic of Services can enter or leave: those with a route to an endpoint, or to pods.
    devices_of: dict[Family, set[str]] = {}
    for family in Family:
        ips = [flow.ip for flow in traffic.after if family_of(flow.ip) is family]
        networks = [each for each in inputs.pod_networks if each.family is family]
        devices_of[family] = {
            route.device
            for route in routes(family)
            if any(ip in route.network for ip in ips) or any(route.network.ip in each for each in networks)
        }
    async for hook in _hooks(inputs):
        devices = set[str]().union(*(devices_of[family] for family in hook.families))
        table = Table(
            hook.chains,
            inputs.pod_networks,
            devices - {"lo"},  # /proc/net/ipv6_route has a default route by it, for packets without a route
            local,
            hook.wanted,
            1 << inputs.config.iptables_masquerade_bit,
            hook.skipped,
        )
        flows = (flow for flow in traffic.at(hook.kind) if family_of(flow.ip) in hook.families)
        for rule, flow in table.deciding_rules(hook.start, flows):
            found.setdefault((hook.evidence, rule.key), (rule, hook, []))[2].append(flow)
    return [await _finding(rule, hook, flows) for rule, hook, flows in found.values()]


def _traffic(objects: Objects, local: Collection[bytes], *, is_ipvs: bool) -> _Traffic:
    before, after, node = dict[Flow, None](), dict[Flow, None](), dict[Flow, None]()
    for service in objects.services:
        frontend, name = service.frontend, f"{service.namespace}/{service.name}"
        if frontend is None:
            continue
        protocol = frontend.protocol.lower()
        ip = parse_ip(frontend.address)
        ips = [ip] if any(ip) else [each for each in local if len(each) == len(ip)]
        before |= dict.fromkeys(Flow(each, protocol, frontend.port, name) for each in ips)
        for text in service.endpoints.addresses:
            address, _, port = text.rpartition(":")
            endpoint = Flow(parse_ip(address.strip("[]")), protocol, int(port), name)
            (node if endpoint.ip in local else after)[endpoint] = None
        if service.health_check_node_port:
            node |= {
                Flow(each, "tcp", service.health_check_node_port, f"{name} (health check)"): None for each in local
            }
    # In IPVS mode packets to Services are delivered to the node before they are translated.
    return _Traffic(tuple(before), tuple(after), (*node, *before) if is_ipvs else tuple(node))


async def _hooks(inputs: Inputs) -> AsyncIterator[_Hook]:
    for table, hooks in _IPTABLES.items():
        for variant, family in iptables_tables(inputs, table):
            try:
                saved = await saved_table(family, variant, table)
            except ApplyError:  # rules that only nft can print
                async for hook in _native_hooks_of("ip" if family is Family.IPV4 else "ip6", table):
                    yield hook
                continue
            for chain, wanted in hooks.items():
                is_input = chain == "INPUT"
                chains = iptables_chains(saved, policy_of=chain if is_input else "")
                tool = program(family, variant)
                skipped = () if is_input else _OURS
                evidence = f"{tool} -t {table} -S"
                yield _Hook(chains, chain, chain.lower(), wanted, evidence, (family,), skipped)
    for variant, family in iptables_tables(inputs, NAT):
        for chain in ("PREROUTING", "POSTROUTING"):
            if (in_nat := await _nat_hook(variant, family, chain)) is not None:
                yield in_nat
    async for hook in _native_hooks():
        yield hook


# By table and base chain, the effects that decide about traffic of Services. A filter ends a connection at any hook; what
# raw NOTRACK leaves without conntrack is never translated; a mark set before nat can select the packet for masquerading.
_IPTABLES: Mapping[str, Mapping[str, frozenset[Effect]]] = {
    _RAW: {"PREROUTING": _FILTERS | {Effect.NOTRACK}, "OUTPUT": _FILTERS | {Effect.NOTRACK}},
    MANGLE: {"PREROUTING": _FILTERS | {Effect.MARK}, "FORWARD": _FILTERS | {Effect.MARK}},
    FILTER: {"FORWARD": _FILTERS, "INPUT": _FILTERS},
}


async def _nat_hook(variant: Variant, family: Family, start: str) -> _Hook | None:
    # The first translation of a connection wins, so that only what comes before our rules matters. In POSTROUTING our rules
    # leave to other programs what they do not masquerade.
    lines = (await chain_rules(family, variant, ChainKey(NAT, start))).splitlines()
    ours = next((at for at, line in enumerate(lines) if f"-j {names.SERVICES}" in line), None)
    wanted = {Effect.MASQUERADE} if start == "POSTROUTING" else {Effect.TRANSLATE}
    saved, wanted = lines[:ours], wanted | ({Effect.ACCEPT} if ours is not None else set())
    queue, seen = [*saved], {HOST_PORTS}
    while queue and len(seen) < _MOST_CHAINS:
        target = re.search(r" -[jg] (\S+)", queue.pop())
        if target and target[1] not in seen and not target[1].startswith(_OURS):
            seen.add(target[1])
            more = (await chain_rules(family, variant, ChainKey(NAT, target[1]))).splitlines()
            saved += more
            queue += more
    evidence = f"{program(family, variant)} -t nat -S"
    chains = iptables_chains("\n".join(line for line in saved if line.startswith("-")))
    return _Hook(chains, start, start.lower(), wanted, evidence, (family,), _OURS) if chains else None


async def _native_hooks() -> AsyncIterator[_Hook]:
    if not shutil.which("nft"):
        return
    for line in (await run(["nft", "list", "tables"])).stdout.splitlines():
        _, family, table = line.split()
        is_of_iptables = family in {"ip", "ip6"} and table in {*IPVS_TABLES, _RAW, "security"}
        if table not in _OUR_TABLES and not is_of_iptables:
            async for hook in _native_hooks_of(family, table):
                yield hook


async def _native_hooks_of(family: str, table: str) -> AsyncIterator[_Hook]:
    result = await run(["nft", "--json", "list", "table", family, table])
    items = json.loads(result.stdout)["nftables"] if result.status == 0 else []
    chains = nft_chains(items, with_policies=("input",))
    families = {"ip": (Family.IPV4,), "ip6": (Family.IPV6,)}.get(family, tuple(Family))
    for chain in (item["chain"] for item in items if "hook" in item.get("chain", ())):
        of_nat = {Effect.MASQUERADE if chain["hook"] == "postrouting" else Effect.TRANSLATE}
        wanted = of_nat if chain["type"] == "nat" else {*_FILTERS, Effect.NOTRACK, Effect.MARK}
        evidence = f"nft list chain {family} {table} {chain['name']}"
        listing = ("nft", "-a", "list", "table", family, table)
        yield _Hook(chains, chain["name"], chain["hook"], wanted, evidence, families, _OURS, listing)


async def _finding(rule: Rule, hook: _Hook, flows: list[Flow]) -> Finding:
    services = list(dict.fromkeys(flow.service for flow in flows))
    more = f" and {len(services) - 1} more" if len(services) > 1 else ""
    first = flows[0]
    whose = f"{services[0]}{more} ({socket_text(first.ip, first.port)}/{first.protocol.upper()})"
    # nft gives a rule in JSON a handle only; the words that a user would search for are in the listing.
    text = rule.key
    if hook.listing:
        listed = (await run([*hook.listing])).stdout
        # Tables, chains and sets have handles of their own; their lines end with a brace.
        if found := re.search(rf"^\s*(.*[^{{]) # handle {re.escape(rule.key)}$", listed, re.MULTILINE):
            text = found[1]
    action = _ACTIONS[rule.effect].format(mark=f"{rule.mark:#x}")
    is_broad = not (rule.destinations or rule.ports) or rule.effect is Effect.NOTRACK
    severity = fail if is_broad and rule.effect not in {Effect.MARK, Effect.MASQUERADE} else warn
    return severity(
        f"a rule of another program {action} traffic of {whose}: {text}",
        hook.evidence,
        "remove the rule, or exclude this traffic from it",
    )
