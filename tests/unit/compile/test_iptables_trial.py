"""The iptables mode on trial beside kube-proxy: the same rules, in chains that nobody else has."""

import pytest
from msgspec.structs import replace

from pyproxy.compile.chain_names import is_of_trial, is_ours
from pyproxy.compile.iptables import IptablesProgram
from pyproxy.compile.iptables_static import IptablesSettings
from pyproxy.compile.iptables_trial import TrialProgram, trial_hooks
from pyproxy.compile.kube_proxy import is_kube_proxys
from pyproxy.model.address import Family, parse_network
from pyproxy.model.ruleset import FILTER, NAT, ChainKey, HookKey
from tests.unit.compile.building import PLAN, endpoints, ips

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
"""XT_EXTENSION_MAXNAMELEN of `linux/netfilter/x_tables.h`, less the zero byte."""


@pytest.fixture
def trial() -> TrialProgram:
    """Give a program with a Service that has every kind of chain."""
    program = TrialProgram(SETTINGS)
    program.put(PLAN_WITH_ALL.name, PLAN_WITH_ALL)
    return program


def test_no_chain_is_shared(trial: TrialProgram) -> None:
    """No chain, and no jump, has a name that kube-proxy, the kubelet, or pyproxy in full service uses."""
    chains = [key for key in trial.keys() if isinstance(key, ChainKey)]  # noqa: SIM118  # no dict
    text = "".join(trial.value(key) or "" for key in trial.keys())  # noqa: SIM118  # as above

    assert all(is_of_trial(*key) for key in chains)
    assert not [key for key in chains if is_ours(*key) or is_kube_proxys(*key)]
    assert "KUBE-" not in text
    assert max(len(key.chain) for key in chains) <= LONGEST_CHAIN_NAME
    assert {ChainKey(NAT, "PYPROXY-SERVICES"), ChainKey(FILTER, "PYPROXY-FORWARD")} < set(chains)


def test_every_rule_is_there_but_what_is_shared(trial: TrialProgram) -> None:
    """Beside names the rules are those of the mode, without our marker and the kubelet's part."""
    program = IptablesProgram(SETTINGS)
    program.put(PLAN_WITH_ALL.name, PLAN_WITH_ALL)
    full = [rules for key in program.keys() if (rules := program.value(key))]  # noqa: SIM118  # as above
    of_trial = [rules.replace("PYPROXY-", "KUBE-") for key in trial.keys() if (rules := trial.value(key))]  # noqa: SIM118  # as above

    assert sorted(rules for rules in full if "KUBE-FIREWALL" not in rules) == sorted(of_trial)


def test_what_changes_is_told_by_its_name_on_trial(trial: TrialProgram) -> None:
    """Keys that a plan touches are those under which values are found."""
    touched = trial.put(PLAN_WITH_ALL.name, None)

    assert ChainKey(NAT, "PYPROXY-SERVICES") in touched
    assert all(trial.value(key) in {None, ""} for key in touched if key.chain != "PYPROXY-SERVICES")


def test_hooks_are_known(trial: TrialProgram) -> None:
    """Each rule in a chain of others is one that a cleanup knows."""
    hooks = {key for key in trial.keys() if isinstance(key, HookKey)}  # noqa: SIM118  # as above

    assert hooks == set(trial_hooks(Family.IPV4))
    assert hooks
