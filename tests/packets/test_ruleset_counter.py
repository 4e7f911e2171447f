"""The cheap check for external changes, on a real kernel: what it detects, and what it must ignore."""

from __future__ import annotations

import select
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from threading import Thread

import pytest

from pyproxy.backends.iptables.ruleset import TABLES
from pyproxy.linux.iptables_programs import Variant, program
from pyproxy.linux.ruleset_counter import LegacyCounter, NftGeneration, RulesetCounter
from pyproxy.model.address import Family

from .each import families, variants
from .own_namespace import load, run

pytestmark = pytest.mark.usefixtures("own_tables")

BOTH_TABLES = "".join(f"*{table}\n:OURS - [0:0]\n-A OURS -j RETURN\nCOMMIT\n" for table in TABLES)
Counters = dict[Family, RulesetCounter]
OpenCounters = Callable[[Variant], Counters]


@pytest.fixture
def open_counters() -> Iterator[OpenCounters]:
    """Provide a function that opens the counters of both families, settled on the current state, as an agent does."""
    with ExitStack() as stack:

        def legacy(family: Family) -> LegacyCounter:
            counter = LegacyCounter(family, TABLES)
            stack.callback(counter.close)
            return counter

        def nft() -> Counters:
            generation = NftGeneration()
            stack.callback(generation.close)
            return {family: generation.counter() for family in Family}

        yield lambda variant: nft() if variant is Variant.NFT else {family: legacy(family) for family in Family}


def commit(counters: Counters, family: Family, variant: Variant, text: str) -> None:
    """Change the tables of a family as the agent does: by one restore that the counter expects."""
    load(family, variant, text)
    counters[family].committed(text.count("COMMIT"))


def changed_externally(counters: Counters) -> list[Family]:
    """Return the families whose counter reports an external change."""
    return [family for family, counter in counters.items() if counter.changed_externally()]


def is_readable(counter: RulesetCounter) -> bool:
    """Return whether a notification of a change has arrived."""
    assert counter.descriptor is not None
    return bool(select.select([counter.descriptor], [], [], 0)[0])


def test_notifications(open_counters: OpenCounters) -> None:
    """Each change of nf_tables, however large, makes a descriptor readable until the next look; legacy tables have none."""
    counters = open_counters(Variant.NFT)
    assert {None} == {each.descriptor for each in (*counters.values(), *open_counters(Variant.LEGACY).values())}
    assert [] == changed_externally(counters)
    counter = counters[Family.IPV4]
    for rules in (1, 5_000):
        before = is_readable(counter)
        load(Family.IPV6, Variant.NFT, "*filter\n:OURS - [0:0]\n" + "-A OURS -j RETURN\n" * rules + "COMMIT\n")
        assert (False, True) == (before, is_readable(counter))
        assert counter.changed_externally()
        counter.settle()

    assert not is_readable(counter)


@variants
def test_without_a_change(open_counters: OpenCounters, variant: Variant) -> None:
    """Without changes a counter reports none, also at repeated checks."""
    counters = open_counters(variant)

    assert ([], []) == (changed_externally(counters), changed_externally(counters))


@variants
@families
def test_own_commits_are_not_external_changes(open_counters: OpenCounters, family: Family, variant: Variant) -> None:
    """Own commits are not reported: the first, which creates tables, one to both tables, and one to one table."""
    counters = open_counters(variant)
    seen = []

    for text in (BOTH_TABLES, BOTH_TABLES, "*nat\n:MORE - [0:0]\nCOMMIT\n"):
        commit(counters, family, variant, text)
        seen.append(changed_externally(counters))

    assert [[], [], []] == seen


@variants
def test_commits_of_both_families_are_not_external_changes(open_counters: OpenCounters, variant: Variant) -> None:
    """Alternating commits of both families are not reported."""
    counters = open_counters(variant)

    for family in (*Family, *Family):
        commit(counters, family, variant, BOTH_TABLES)

    assert [] == changed_externally(counters)


@variants
@families
@pytest.mark.parametrize("change", [("-A", "INPUT", "-j", "ACCEPT"), ("-N", "FOREIGN"), ("-F", "OURS")], ids=" ".join)
def test_external_changes_are_detected(
    open_counters: OpenCounters, family: Family, variant: Variant, change: tuple[str, ...]
) -> None:
    """A foreign rule or chain, and a flushed chain of ours, are reported in their family."""
    counters = open_counters(variant)
    commit(counters, family, variant, BOTH_TABLES)

    run(program(family, variant), "-w", *change)

    assert family in changed_externally(counters)


@families
def test_legacy_families_are_independent(open_counters: OpenCounters, family: Family) -> None:
    """An external change to the legacy tables of one family is not reported for the other."""
    counters = open_counters(Variant.LEGACY)

    run(program(family, Variant.LEGACY), "-w", "-A", "INPUT", "-j", "ACCEPT")

    assert [family] == changed_externally(counters)


def test_a_flush_of_everything_is_reported_in_both_families(open_counters: OpenCounters) -> None:
    """After ``nft flush ruleset`` the counters of both families report a change, until each is settled again."""
    counters = open_counters(Variant.NFT)
    commit(counters, Family.IPV4, Variant.NFT, BOTH_TABLES)

    run("nft", "flush", "ruleset")

    assert list(Family) == changed_externally(counters)
    counters[Family.IPV4].settle()
    assert [Family.IPV6] == changed_externally(counters)


@variants
def test_a_change_between_own_commits_is_not_lost(open_counters: OpenCounters, variant: Variant) -> None:
    """A foreign rule is still reported after a commit of the other family."""
    counters = open_counters(variant)
    commit(counters, Family.IPV4, variant, BOTH_TABLES)

    run(program(Family.IPV4, variant), "-w", "-A", "INPUT", "-j", "ACCEPT")
    commit(counters, Family.IPV6, variant, BOTH_TABLES)

    assert Family.IPV4 in changed_externally(counters)


@variants
def test_a_change_is_reported_until_the_rules_are_read(open_counters: OpenCounters, variant: Variant) -> None:
    """A check does not clear a reported change; settling before a read does."""
    counters = open_counters(variant)
    run(program(Family.IPV4, variant), "-w", "-A", "INPUT", "-j", "ACCEPT")

    asked = [counters[Family.IPV4].changed_externally() for _ in range(2)]
    counters[Family.IPV4].settle()

    assert ([True, True], False) == (asked, counters[Family.IPV4].changed_externally())


def test_families_may_look_at_the_same_time(open_counters: OpenCounters) -> None:
    """Both families can check concurrently in threads, and neither receives the answer for the other."""
    counters = open_counters(Variant.NFT)

    seen: list[bool] = []

    def look(family: Family) -> None:
        seen.extend(counters[family].changed_externally() for _ in range(2000))

    threads = [Thread(target=look, args=[family], daemon=True) for family in Family]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert [False] * 4000 == seen
