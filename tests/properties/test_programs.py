"""Invariants of the programs of all modes, for any cluster and any order of changes."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyproxy.backends.interface import Program
from pyproxy.backends.iptables.program import IptablesProgram
from pyproxy.backends.ipvs.program import IpvsProgram
from pyproxy.backends.nftables.program import NftablesProgram
from tests.properties.planning import Plans, filled, plans_of, wanted
from tests.properties.strategies import Cluster, clusters, iptables_settings, ipvs_settings, nftables_settings


@dataclass(frozen=True, slots=True)
class Mode:
    """A program, and a strategy for its settings."""

    program: Callable[[Any], Program[Any, Any]]
    settings: st.SearchStrategy[Any]

    def draw(self, data: st.DataObject, cluster: Cluster) -> tuple[Any, Plans]:
        """Draw settings and a cluster, and return its plans."""
        chosen = data.draw(self.settings)
        return chosen, plans_of(cluster, chosen.family)


MODES = {
    "iptables": Mode(IptablesProgram, iptables_settings()),
    "nftables": Mode(NftablesProgram, nftables_settings()),
    "ipvs": Mode(IpvsProgram, ipvs_settings()),
}
in_every_mode = pytest.mark.parametrize("mode", MODES.values(), ids=MODES)


@in_every_mode
@given(st.data(), clusters())
def test_order_of_plans_does_not_matter(mode: Mode, data: st.DataObject, cluster: Cluster) -> None:
    """The order in which a program gets the plans does not affect its entries."""
    chosen, plans = mode.draw(data, cluster)
    backwards = dict(reversed([*plans.items()]))

    assert wanted(filled(mode.program(chosen), plans)) == wanted(filled(mode.program(chosen), backwards))


@in_every_mode
@given(st.data(), clusters())
def test_second_put_changes_nothing(mode: Mode, data: st.DataObject, cluster: Cluster) -> None:
    """Putting a plan a second time changes no entry."""
    chosen, plans = mode.draw(data, cluster)
    program = filled(mode.program(chosen), plans)

    assert [set()] * len(plans) == [program.put(name, plan) for name, plan in plans.items()]


@in_every_mode
@given(st.data(), clusters())
def test_keys_are_what_has_a_value(mode: Mode, data: st.DataObject, cluster: Cluster) -> None:
    """`keys` yields each key once, and after all ports are removed only the keys of an empty program."""
    chosen, plans = mode.draw(data, cluster)
    program = filled(mode.program(chosen), plans)
    keys = Counter(program.keys())
    for name in plans:
        program.put(name, None)

    assert {1} >= set(keys.values())
    assert wanted(mode.program(chosen)) == wanted(program)
    assert [] == [key for key in keys if program.value(key) is not None and key not in set(program.keys())]


@in_every_mode
@given(st.data(), clusters(), clusters())
def test_difference_leads_from_one_to_the_other(
    mode: Mode, data: st.DataObject, before: Cluster, after: Cluster
) -> None:
    """The keys that `put` returns cover all differences, in any order in which addresses move between ports."""
    chosen = data.draw(mode.settings)
    old, new = plans_of(before, chosen.family), plans_of(after, chosen.family)
    program = filled(mode.program(chosen), old)
    kernel = wanted(program)
    for name in data.draw(st.permutations(sorted({*old, *new}))):
        for key in program.put(name, new.get(name)):
            value = program.value(key)
            if value is None:
                kernel.pop(key, None)
            else:
                kernel[key] = value
        assert wanted(program) == kernel

    assert wanted(filled(mode.program(chosen), new)) == kernel
