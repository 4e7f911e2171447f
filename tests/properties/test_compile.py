"""Invariants of compiled iptables rulesets, for any cluster."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from hypothesis import given
from msgspec import structs

from pyproxy.backends.iptables import chain_names
from pyproxy.backends.iptables.attribution import list_rules
from pyproxy.backends.iptables.program import SHARED_CHAINS, port_rules
from pyproxy.backends.iptables.restore_text import listing_restore
from pyproxy.backends.iptables.ruleset import NAT, ChainKey, HookKey
from pyproxy.backends.iptables.static_rules import IptablesSettings, node_port_jumps, static_rules
from pyproxy.backends.listing import ListedRule
from pyproxy.model.address import Family
from pyproxy.model.names import Protocol, ServicePortName
from tests.fakes.tables import HOOKS, Tables
from tests.properties.planning import Plans, compiled, plans_of, ruleset_of, tables_of
from tests.properties.strategies import Cluster, clusters, iptables_settings

LONGEST_CHAIN_NAME = 28
"""The longest chain name in bytes (XT_EXTENSION_MAXNAMELEN without the terminating zero)."""


def reached(tables: Tables, table: str, starts: Iterable[str]) -> set[str]:
    """Return the chains that a packet can reach from these chains, including them."""
    found: set[str] = set()
    waiting = list(starts)
    while waiting:
        chain = waiting.pop()
        if chain not in found:
            found.add(chain)
            waiting += tables.jumps(table, chain)
    return found


def lines_of(texts: Mapping[Any, str]) -> list[str]:
    """Return all lines of the values of a ruleset."""
    return [line for text in texts.values() for line in text.splitlines()]


@given(clusters(), iptables_settings())
def test_every_jump_has_a_target(cluster: Cluster, settings: IptablesSettings) -> None:
    """Every target chain exists, as iptables-restore requires."""
    tables = compiled(cluster, settings)

    for table, chains in tables.chains.items():
        jumped_to = {target for chain in chains for target in tables.jumps(table, chain)}
        assert set() == jumped_to - chains.keys()


@given(clusters(), iptables_settings())
def test_every_chain_of_a_port_is_used(cluster: Cluster, settings: IptablesSettings) -> None:
    """Every chain of a Service port can be reached from the shared chains."""
    tables = compiled(cluster, settings)
    dispatch = (key.chain for key in SHARED_CHAINS if key.table == NAT)
    own = {chain for chain in tables.chains[NAT] if chain.startswith(chain_names.SERVICE_PREFIXES)}

    assert set() == own - reached(tables, NAT, dispatch)


@given(iptables_settings(), clusters())
def test_every_shared_chain_is_hooked(settings: IptablesSettings, cluster: Cluster) -> None:
    """Every shared chain can be reached from a hook, if the node serves node ports at all."""
    tables = compiled(cluster, replace(settings, node_port_ips=None))

    for table, hooks in HOOKS.items():
        assert set() == {key.chain for key in SHARED_CHAINS if key.table == table} - reached(tables, table, hooks)


@given(clusters(), iptables_settings())
def test_no_chain_of_a_port_is_empty(cluster: Cluster, settings: IptablesSettings) -> None:
    """Every chain of a Service port has a rule."""
    chains = compiled(cluster, settings).chains[NAT]

    assert [] == [
        chain for chain, rules in chains.items() if chain.startswith(chain_names.SERVICE_PREFIXES) and not rules
    ]


@given(clusters(), iptables_settings())
def test_every_chain_is_known_as_ours(cluster: Cluster, settings: IptablesSettings) -> None:
    """Every chain is recognised as ours, and its name is short enough for the kernel."""
    ruleset = ruleset_of(plans_of(cluster, settings.family), settings)
    own = [key for key in ruleset if isinstance(key, ChainKey) and key.chain != chain_names.KUBELET_FIREWALL]

    assert [] == [key for key in own if not chain_names.is_ours(*key) or len(key.chain) > LONGEST_CHAIN_NAME]


@given(clusters(), iptables_settings())
def test_pieces_add_up_to_the_chains(cluster: Cluster, settings: IptablesSettings) -> None:
    """Each rule comes from exactly one port, or does not depend on Services."""
    plans = plans_of(cluster, settings.family)
    rules = [
        *lines_of(static_rules(settings)),
        *node_port_jumps(settings).splitlines(),
        *(line for plan in plans.values() for line in lines_of(port_rules(plan, settings))),
    ]

    assert sorted(rules) == sorted(lines_of(ruleset_of(plans, settings)))


def listed(plans: Plans, settings: IptablesSettings) -> list[ListedRule]:
    """Return the rules of a program one by one, as in the kernel."""
    ruleset = ruleset_of(plans, settings)
    hooks = [ListedRule(*key) for key in ruleset if isinstance(key, HookKey)][::-1]
    return hooks + [
        ListedRule(*key, line)
        for key, value in ruleset.items()
        if isinstance(key, ChainKey)
        for line in value.splitlines()
    ]


@given(clusters(), iptables_settings())
def test_rules_are_attributed_to_their_port(cluster: Cluster, settings: IptablesSettings) -> None:
    """Each rule of a Service port, and no other rule, is attributed to it from the rules alone."""
    plans = plans_of(cluster, settings.family)
    by_port = {name: sorted(lines_of(port_rules(plan, settings))) for name, plan in plans.items()}
    listing = list_rules(settings.family, (), listed(plans, settings))

    assert {shown_name(name, rules): rules for name, rules in by_port.items() if rules} == {
        name: sorted(rule.rule for rule in rules) for name, rules in listing.services.items()
    }


def shown_name(name: ServicePortName, rules: Iterable[str]) -> ServicePortName:
    """Return the name under which a port is listed; if it has only a health check, no rule has the protocol."""
    is_known = not all("health check node port" in rule for rule in rules)
    return name if is_known else structs.replace(name, protocol=Protocol.TCP)


@given(clusters(), iptables_settings())
def test_listing_restores_to_the_same_tables(cluster: Cluster, settings: IptablesSettings) -> None:
    """Loading the output of ``dump-rules -o restore`` creates the same tables as the agent, with the same order."""
    plans = plans_of(cluster, settings.family)
    ruleset = ruleset_of(plans, settings)
    chains = [key for key in ruleset if isinstance(key, ChainKey)]
    printed = Tables()
    printed.restore(listing_restore(list_rules(settings.family, chains, listed(plans, settings))))

    assert tables_of(ruleset).chains == printed.chains


@given(clusters())
def test_families_are_apart(cluster: Cluster) -> None:
    """The rules of a family contain no address of the other."""
    for family, foreign in ((Family.IPV4, "2001:db8"), (Family.IPV6, "203.0.113")):
        ruleset = ruleset_of(plans_of(cluster, family), IptablesSettings(family=family))
        assert [] == [value for value in ruleset.values() if foreign in value]


def test_shared_chains_are_there_without_services() -> None:
    """The shared chains exist without Services, so that hooks have a target."""
    ruleset = ruleset_of({}, IptablesSettings(family=Family.IPV4))

    assert set() == set(SHARED_CHAINS) - ruleset.keys()
