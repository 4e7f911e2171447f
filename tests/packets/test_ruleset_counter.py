"""The cheap look at whether others changed the rules, against the kernel: what it sees, and what it must not mistake."""

from __future__ import annotations

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
    """Give a function that opens the counters of both families, as one agent has them: settled on what is there."""
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
    """Change the tables of a family as the agent does: one restore, accounted for."""
    load(family, variant, text)
    counters[family].committed(text.count("COMMIT"))


def changed_externally(counters: Counters) -> list[Family]:
    """Return the families whose counter was disturbed."""
    return [family for family, counter in counters.items() if counter.changed_externally()]


@variants
def test_nothing_done_is_no_disturbance(open_counters: OpenCounters, variant: Variant) -> None:
    """A counter that was just made, and one that was asked before, is not disturbed."""
    counters = open_counters(variant)

    assert ([], []) == (changed_externally(counters), changed_externally(counters))


@variants
@families
def test_own_commits_are_no_disturbance(open_counters: OpenCounters, family: Family, variant: Variant) -> None:
    """The first commit, which creates tables, one to both tables, and one to one table disturb neither family."""
    counters = open_counters(variant)
    seen = []

    for text in (BOTH_TABLES, BOTH_TABLES, "*nat\n:MORE - [0:0]\nCOMMIT\n"):
        commit(counters, family, variant, text)
        seen.append(changed_externally(counters))

    assert [[], [], []] == seen


@variants
def test_commits_of_both_families_are_no_disturbance(open_counters: OpenCounters, variant: Variant) -> None:
    """A commit of one family between those of the other disturbs no counter."""
    counters = open_counters(variant)

    for family in (*Family, *Family):
        commit(counters, family, variant, BOTH_TABLES)

    assert [] == changed_externally(counters)


@variants
@families
@pytest.mark.parametrize("change", [("-A", "INPUT", "-j", "ACCEPT"), ("-N", "FOREIGN"), ("-F", "OURS")], ids=" ".join)
def test_a_change_by_others_is_a_disturbance(
    open_counters: OpenCounters, family: Family, variant: Variant, change: tuple[str, ...]
) -> None:
    """A rule or chain that another program adds, and a chain of ours that it flushes, disturb that family's counter."""
    counters = open_counters(variant)
    commit(counters, family, variant, BOTH_TABLES)

    run(program(family, variant), "-w", *change)

    assert family in changed_externally(counters)


@families
def test_legacy_families_are_apart(open_counters: OpenCounters, family: Family) -> None:
    """A change by others to the legacy tables of one family does not disturb the other's counter."""
    counters = open_counters(Variant.LEGACY)

    run(program(family, Variant.LEGACY), "-w", "-A", "INPUT", "-j", "ACCEPT")

    assert [family] == changed_externally(counters)


def test_a_flush_of_everything_disturbs_both_families(open_counters: OpenCounters) -> None:
    """After ``nft flush ruleset`` the counters of both families are disturbed, until each settles anew."""
    counters = open_counters(Variant.NFT)
    commit(counters, Family.IPV4, Variant.NFT, BOTH_TABLES)

    run("nft", "flush", "ruleset")

    assert list(Family) == changed_externally(counters)
    counters[Family.IPV4].settle()
    assert [Family.IPV6] == changed_externally(counters)


@variants
def test_a_change_between_own_commits_is_not_lost(open_counters: OpenCounters, variant: Variant) -> None:
    """A rule of others stays a disturbance when a commit of the other family comes after it."""
    counters = open_counters(variant)
    commit(counters, Family.IPV4, variant, BOTH_TABLES)

    run(program(Family.IPV4, variant), "-w", "-A", "INPUT", "-j", "ACCEPT")
    commit(counters, Family.IPV6, variant, BOTH_TABLES)

    assert Family.IPV4 in changed_externally(counters)


@variants
def test_a_disturbance_lasts_until_the_rules_are_read(open_counters: OpenCounters, variant: Variant) -> None:
    """Asking does not end a disturbance; settling, which comes before a read, does."""
    counters = open_counters(variant)
    run(program(Family.IPV4, variant), "-w", "-A", "INPUT", "-j", "ACCEPT")

    asked = [counters[Family.IPV4].changed_externally() for _ in range(2)]
    counters[Family.IPV4].settle()

    assert ([True, True], False) == (asked, counters[Family.IPV4].changed_externally())


def test_families_may_look_at_the_same_time(open_counters: OpenCounters) -> None:
    """Both read their tables in threads; none may take the other's answer, and leave it waiting."""
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
