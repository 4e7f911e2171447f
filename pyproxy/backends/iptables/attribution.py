"""Finds the Service port that each iptables rule belongs to, from the rules alone.

Planned rules and rules read from the kernel go through the same code, so every difference between the two listings is a
difference of rules. The name of a Service port is in one comment of its rules, and the names of its chains are hashes of it.
"""

import re
from collections.abc import Iterable

from pyproxy.backends.iptables import chain_names as names
from pyproxy.backends.iptables.ruleset import NAT, TABLES
from pyproxy.backends.listing import ListedRule, RuleListing
from pyproxy.model.address import Family
from pyproxy.model.names import NamespacedName, Protocol, ServicePortName

_NAMED = re.compile(
    r' -p (?P<protocol>\w+) .*--comment "(?P<namespace>[^ "/]+)/(?P<name>[^ ":]+)(?::(?P<port>[^ "]+))?'
    r" (?P<what>cluster IP|external address|has no |traffic not accepted|health check node port)"
)
# Chains of Service ports end in 16 characters of base32; jumps to shared chains are not matched.
_JUMP = re.compile(r" -j (?P<chain>KUBE-[A-Z]+-[A-Z2-7]{16})$")
_HEALTH_CHECK = "health check node port"
# The order in which a packet can pass the chains of a Service port, which is the order of a listing.
_CHAIN_ORDER = ("KUBE-FW-", "KUBE-EXT-", "KUBE-SVC-", "KUBE-SVL-", "KUBE-SEP-")


def list_rules(
    family: Family,
    chains: Iterable[tuple[str, str]],
    rules: Iterable[ListedRule],
    also: Iterable[ListedRule] = (),
) -> RuleListing:
    """Sort rules by the Service port that they belong to; within a port and chain their order is kept.

    Args:
        family: of the rules.
        chains: table and name of our chains.
        rules: the rules to sort.
        also: other rules, not listed. Their names of Service ports are used for chains whose own name is missing.
    """
    rules = tuple(rules)
    owners = _owners((*also, *rules))
    common: list[ListedRule] = []
    services: dict[ServicePortName, list[ListedRule]] = {}
    last: list[ListedRule] = []
    for rule in rules:
        owner = owners.get(rule)
        if owner is not None:
            services.setdefault(owner, []).append(rule)
        elif rule.table == NAT and rule.chain == names.SERVICES:
            # The jumps to node ports, which are last in this chain: see `static_rules.node_port_jumps`.
            last.append(rule)
        else:
            common.append(rule)
    return RuleListing(
        family=family,
        chains=tuple(sorted(chains, key=lambda key: (TABLES.index(key[0]), key[1]))),
        common=tuple(sorted(common, key=_place)),
        services={name: tuple(sorted(services[name], key=_place)) for name in sorted(services)},
        last=tuple(last),
    )


def _owners(rules: tuple[ListedRule, ...]) -> dict[ListedRule, ServicePortName]:
    named: dict[ListedRule, ServicePortName] = {}
    of_chain: dict[str, ServicePortName] = {}
    health_checks: list[tuple[ListedRule, ServicePortName]] = []
    for rule in rules:
        found = _NAMED.search(rule.rule)
        if not found:
            continue
        service = NamespacedName(found["namespace"], found["name"])
        name = ServicePortName(service, found["port"] or "", Protocol(found["protocol"]))
        if found["what"] == _HEALTH_CHECK:
            health_checks.append((rule, name))
        else:
            named[rule] = name
            suffix = names.service_suffix(name)
            of_chain.update((f"{prefix}{suffix}", name) for prefix in names.SERVICE_PREFIXES)
    # A health check is TCP whatever the protocol of its Service port, so the port is looked up by name.
    known = {str(name): name for name in named.values()}
    named.update((rule, known.get(str(name), name)) for rule, name in health_checks)

    # The name of an endpoint chain has no Service in it: its owner is the owner of the chain that jumps to it.
    jumps = {rule: jump["chain"] for rule in rules if (jump := _JUMP.search(rule.rule))}
    for rule, target in jumps.items():
        if rule.chain in of_chain:
            of_chain.setdefault(target, of_chain[rule.chain])

    owners = {}
    for rule in rules:
        owner = of_chain.get(rule.chain) or named.get(rule) or of_chain.get(jumps.get(rule, ""))
        if owner is not None:
            owners[rule] = owner
    return owners


def _place(rule: ListedRule) -> tuple[int, int, str]:
    prefix = next((i for i, begin in enumerate(_CHAIN_ORDER) if rule.chain.startswith(begin)), -1)
    return TABLES.index(rule.table), prefix, rule.chain
