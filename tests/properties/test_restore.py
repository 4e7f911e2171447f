"""Rulesets written as restore input and read from save output are the same, and foreign rules do not change."""

from hypothesis import given

from pyproxy.backends.iptables.chain_names import KUBELET_FIREWALL
from pyproxy.backends.iptables.restore_text import restore_text
from pyproxy.backends.iptables.ruleset import RulesetKey
from pyproxy.backends.iptables.static_rules import IptablesSettings
from pyproxy.model.address import Family
from tests.fakes.kernel import TableKernel
from tests.properties.planning import difference, plans_of, ruleset_of, run_now, tables_of
from tests.properties.strategies import Cluster, clusters, iptables_settings


def ruleset(cluster: Cluster, settings: IptablesSettings) -> dict[RulesetKey, str]:
    """Return the rules that a node wants in its kernel."""
    return ruleset_of(plans_of(cluster, settings.family), settings)


@given(clusters(), clusters(), iptables_settings(Family.IPV4), iptables_settings(Family.IPV4))
def test_difference_leads_from_one_to_the_other(
    before: Cluster, after: Cluster, old: IptablesSettings, new: IptablesSettings
) -> None:
    """The difference of two rulesets, applied to the first, gives the second, including the order of hooks."""
    present, wanted = ruleset(before, old), ruleset(after, new)
    tables = tables_of(present)
    tables.restore(restore_text(difference(present, wanted)))

    assert tables_of(wanted).chains == tables.chains


@given(clusters(), clusters(), iptables_settings())
def test_what_is_read_is_what_was_written(before: Cluster, after: Cluster, settings: IptablesSettings) -> None:
    """Applied rules are read back exactly, and foreign rules keep their positions."""
    present, wanted = ruleset(before, settings), ruleset(after, settings)
    kernel = TableKernel(settings.family)
    run_now(kernel.apply(difference({}, present)))
    run_now(kernel.apply(difference(present, wanted)))

    assert wanted == run_now(kernel.read())
    assert kernel.has_foreign_rules()


@given(clusters(), iptables_settings())
def test_nothing_remains_after_removal(cluster: Cluster, settings: IptablesSettings) -> None:
    """The difference to the initial state removes all chains and hooks, and keeps the chain of the kubelet."""
    kernel = TableKernel(settings.family)
    kernel.tables.restore(f"*filter\n:{KUBELET_FIREWALL} - [0:0]\n-A {KUBELET_FIREWALL} -j DROP\nCOMMIT\n")
    clean, was_there = repr(kernel), run_now(kernel.read())
    present = ruleset(cluster, settings)
    run_now(kernel.apply(difference(was_there, present)))
    run_now(kernel.apply(difference(present, was_there)))

    assert clean == repr(kernel)


@given(clusters(), iptables_settings())
def test_equal_rulesets_need_no_text(cluster: Cluster, settings: IptablesSettings) -> None:
    """The difference of a ruleset to itself is empty input, not an empty transaction."""
    present = ruleset(cluster, settings)

    assert restore_text(difference(present, present)) == ""


@given(clusters(), clusters(), iptables_settings())
def test_only_chains_that_differ_are_mentioned(before: Cluster, after: Cluster, settings: IptablesSettings) -> None:
    """An unchanged chain has no line in the input."""
    present, wanted = ruleset(before, settings), ruleset(after, settings)
    lines = restore_text(difference(present, wanted)).splitlines()
    declared = {line[1:].partition(" ")[0] for line in lines if line.startswith(":")}
    differing = {key.chain for key in {*present, *wanted} if present.get(key) != wanted.get(key)}

    assert declared == differing & declared
