"""Which Service port each iptables rule belongs to, told from the rules alone.

Rules from a plan and rules from the kernel go through the same code, so that a difference between the two
is a difference of rules. A port's name stands in one comment; its chains have names made from it.
"""

import re
from collections.abc import Iterable, Iterator

from pyproxy.backends.iptables import chain_names as names
from pyproxy.backends.iptables.ruleset import NAT, TABLES
from pyproxy.backends.listing import ListedRule, RuleListing
from pyproxy.model.address import Family
from pyproxy.model.names import NamespacedName, Protocol, ServicePortName

_NAMED = re.compile(
    r' -p (?P<protocol>\w+) .*--comment "(?P<namespace>[^ "/]+)/(?P<name>[^ ":]+)(?::(?P<port>[^ "]+))?'
    r" (?P<what>cluster IP|external address|has no |traffic not accepted|health check node port)"
)
_JUMP = re.compile(r" -j (?P<chain>KUBE-[A-Z]+-[A-Z2-7]{16})$")
_HEALTH_CHECK = "health check node port"
_FIXED_CHAINS_FIRST = ("KUBE-FW-", "KUBE-EXT-", "KUBE-SVC-", "KUBE-SVL-", "KUBE-SEP-")


def list_rules(family: Family, chains: Iterable[tuple[str, str]], rules: Iterable[ListedRule]) -> RuleListing:
    """Sort rules by the Service port that they belong to; within a port and chain their order stays."""
    rules = tuple(rules)
    owners = _Owners(rules)
    common: list[ListedRule] = []
    services: dict[ServicePortName, list[ListedRule]] = {}
    last: list[ListedRule] = []
    for rule in rules:
        owner = owners.owner(rule)
        if owner is not None:
            services.setdefault(owner, []).append(rule)
        elif rule.table == NAT and rule.chain == names.SERVICES:
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


class _Owners:
    def __init__(self, rules: tuple[ListedRule, ...]) -> None:
        self._named: dict[ListedRule, ServicePortName] = {}
        self._of_chain: dict[str, ServicePortName] = {}
        self._read_names(rules)
        # Endpoint chains are told by who jumps to them, so the chains that do must be known first.
        for rule in rules:
            jump = _JUMP.search(rule.rule)
            if jump and rule.chain in self._of_chain:
                self._of_chain.setdefault(jump["chain"], self._of_chain[rule.chain])

    def owner(self, rule: ListedRule) -> ServicePortName | None:
        if rule.chain in self._of_chain:
            return self._of_chain[rule.chain]
        if rule in self._named:
            return self._named[rule]
        jump = _JUMP.search(rule.rule)
        return self._of_chain.get(jump["chain"]) if jump else None

    def _read_names(self, rules: tuple[ListedRule, ...]) -> None:
        health_checks: list[tuple[ListedRule, ServicePortName]] = []
        for rule in rules:
            found = _NAMED.search(rule.rule)
            if not found:
                continue
            name = ServicePortName(
                NamespacedName(found["namespace"], found["name"]), found["port"] or "", Protocol(found["protocol"])
            )
            if found["what"] == _HEALTH_CHECK:
                health_checks.append((rule, name))
                continue
            self._named[rule] = name
            self._of_chain.update(dict.fromkeys(_chains_of(name), name))
        known = {str(name): name for name in self._named.values()}
        # A health check is TCP whatever the port that it is written for.
        self._named.update((rule, known.get(str(name), name)) for rule, name in health_checks)


def _chains_of(name: ServicePortName) -> Iterator[str]:
    suffix = names.service_suffix(name)
    for prefix in names.SERVICE_PREFIXES:
        yield f"{prefix}{suffix}"


def _place(rule: ListedRule) -> tuple[int, int, str]:
    prefix = next((i for i, begin in enumerate(_FIXED_CHAINS_FIRST) if rule.chain.startswith(begin)), -1)
    return TABLES.index(rule.table), prefix, rule.chain
