"""The iptables mode side-by-side with kube-proxy: the same rules, in chains that no other agent has."""

import pytest
from msgspec.structs import replace

from pyproxy.backends.iptables.chain_names import is_ours, is_side_by_side
from pyproxy.backends.iptables.program import IptablesProgram
from pyproxy.backends.iptables.ruleset import FILTER, NAT, ChainKey, HookKey
from pyproxy.backends.iptables.side_by_side import SideBySideProgram, side_by_side_hooks
from pyproxy.backends.iptables.static_rules import IptablesSettings
from pyproxy.backends.kube_proxy import is_kube_proxys
from pyproxy.model.address import Family, parse_network
from tests.unit.plan.building import PLAN, endpoints, ips

PLAN_WITH_ALL = replace(
    PLAN,
    cluster_ip=ips("10.96.0.10")[0],
    external_ips=ips("192.0.2.1"),
    load_balancer_ips=ips("192.0.2.2"),
    node_port=30080,
    source_ranges=(parse_network("192.0.2.0/24"),),
    affinity_seconds=60,
    external_local=True,
    health_check_node_port=30081,
    cluster_endpoints=endpoints("10.244.0.1:8080", "10.244.1.1:8080"),
    any_usable=True,
)
SETTINGS = IptablesSettings(family=Family.IPV4, localhost_node_ports=False)
LONGEST_CHAIN_NAME = 28
"""XT_EXTENSION_MAXNAMELEN of `linux/netfilter/x_tables.h`, less the final zero."""


@pytest.fixture
def ours() -> SideBySideProgram:
    """Return a program with a Service that has every kind of chain."""
    program = SideBySideProgram(SETTINGS)
    program.put(PLAN_WITH_ALL.name, PLAN_WITH_ALL)
    return program


def test_no_chain_is_shared(ours: SideBySideProgram) -> None:
    """No chain, and no jump, has a name that kube-proxy, the kubelet or a full pyproxy uses."""
    chains = [key for key in ours.keys() if isinstance(key, ChainKey)]  # noqa: SIM118  # no dict
    text = "".join(ours.value(key) or "" for key in ours.keys())  # noqa: SIM118  # as above

    assert all(is_side_by_side(*key) for key in chains)
    assert not [key for key in chains if is_ours(*key) or is_kube_proxys(*key)]
    assert "KUBE-" not in text
    assert max(len(key.chain) for key in chains) <= LONGEST_CHAIN_NAME
    assert {ChainKey(NAT, "PYPROXY-SERVICES"), ChainKey(FILTER, "PYPROXY-FORWARD")} < set(chains)


def test_every_rule_is_there_but_what_is_shared(ours: SideBySideProgram) -> None:
    """Except for names, the rules are those of the mode, without our marker and the kubelet's chain."""
    program = IptablesProgram(SETTINGS)
    program.put(PLAN_WITH_ALL.name, PLAN_WITH_ALL)
    full = [rules for key in program.keys() if (rules := program.value(key))]  # noqa: SIM118  # as above
    found = [rules.replace("PYPROXY-", "KUBE-") for key in ours.keys() if (rules := ours.value(key))]  # noqa: SIM118  # as above

    assert sorted(rules for rules in full if "KUBE-FIREWALL" not in rules) == sorted(found)


def test_changed_keys_have_side_by_side_names(ours: SideBySideProgram) -> None:
    """The keys that a plan changes are keys with values."""
    touched = ours.put(PLAN_WITH_ALL.name, None)

    assert ChainKey(NAT, "PYPROXY-SERVICES") in touched
    assert all(ours.value(key) in {None, ""} for key in touched if key.chain != "PYPROXY-SERVICES")


def test_hooks_are_known(ours: SideBySideProgram) -> None:
    """The clean-up knows every hook."""
    hooks = {key for key in ours.keys() if isinstance(key, HookKey)}  # noqa: SIM118  # as above

    assert hooks == set(side_by_side_hooks(Family.IPV4))
    assert hooks
