"""External changes in legacy tables that keep the number and size of the rules."""

from __future__ import annotations

import asyncio
import re
import shlex
from collections.abc import Iterator
from contextlib import closing

import pytest

from pyproxy.backends.iptables.kernel import IptablesKernel
from pyproxy.backends.iptables.mode import ownership
from pyproxy.backends.iptables.ruleset import TABLES, ChainKey
from pyproxy.linux.iptables_programs import Variant, program
from pyproxy.linux.ruleset_counter import LegacyCounter
from pyproxy.model.address import Family

from .own_namespace import load, run
from .test_foreign_rules import sync, wanted

pytestmark = pytest.mark.usefixtures("own_tables")

FOREIGN = "*nat\n:FOREIGN - [0:0]\n-A FOREIGN -p tcp -m tcp --dport 1 -j ACCEPT\n-A FOREIGN -p tcp -m tcp --dport 2 -j ACCEPT\nCOMMIT\n"


@pytest.fixture
def kernel(family: Family) -> Iterator[IptablesKernel]:
    """Provide legacy tables with our rules and foreign rules, after the first check."""
    with closing(LegacyCounter(family, TABLES)) as counter:
        opened = IptablesKernel(family, Variant.LEGACY, counter, ownership(family))
        load(family, Variant.LEGACY, FOREIGN)
        asyncio.run(sync(opened, wanted(family)))
        assert not asyncio.run(opened.examine())
        yield opened


def iptables(family: Family, *words: str) -> None:
    """Change the nat table."""
    run(program(family, Variant.LEGACY), "-t", "nat", *words)


def endpoint_rule(family: Family) -> tuple[str, list[str]]:
    """Return a chain with a DNAT rule, and that rule with another address."""
    for key, value in sorted(wanted(family).items()):
        if isinstance(key, ChainKey) and "-j DNAT" in value and value.count("\n") == 1:
            return key.chain, shlex.split(re.sub(r"\d(\]?:8080)$", r"9\1", value.strip()))[2:]
    raise AssertionError


def test_nothing_happened(family: Family, kernel: IptablesKernel) -> None:
    """Packet counters, our own changes, and changes of foreign rules are not external changes."""
    iptables(family, "-Z")
    iptables(family, "-R", "FOREIGN", "1", "-p", "tcp", "--dport", "3", "-j", "ACCEPT")
    quiet = asyncio.run(kernel.examine())
    asyncio.run(sync(kernel, wanted(family, 1)))

    assert (False, False) == (quiet, asyncio.run(kernel.examine()))
    assert not asyncio.run(kernel.examine())


def test_a_rule_replaced_in_place(family: Family, kernel: IptablesKernel) -> None:
    """A rule with another address is detected only by comparing digests, and the next full sync repairs it."""
    chain, other = endpoint_rule(family)
    iptables(family, "-R", chain, "1", *other)
    seen = (kernel.changed_externally(), asyncio.run(kernel.examine()))
    changed = asyncio.run(sync(kernel, wanted(family)))

    assert ((False, True), 1) == (seen, changed)
    assert wanted(family) == asyncio.run(kernel.read())
    assert not asyncio.run(kernel.examine())


def test_a_jump_with_another_target(family: Family, kernel: IptablesKernel) -> None:
    """A jump to another of our chains, and a hook to a foreign chain, are detected."""
    first = wanted(family)[ChainKey("nat", "KUBE-SERVICES")].splitlines()[0]
    words = shlex.split(first)[2:-1]
    iptables(family, "-R", "KUBE-SERVICES", "1", *words, "KUBE-NODEPORTS")
    by_jump = asyncio.run(kernel.examine())
    iptables(
        family, "-R", "PREROUTING", "1", "-m", "comment", "--comment", "kubernetes service portals", "-j", "FOREIGN"
    )

    assert (True, True) == (by_jump, asyncio.run(kernel.examine()))


def test_own_changes_do_not_hide_an_external_one(family: Family, kernel: IptablesKernel) -> None:
    """A rule that is replaced between two of our changes to other chains is detected."""
    chain, other = endpoint_rule(family)
    asyncio.run(sync(kernel, {**wanted(family), ChainKey("nat", "KUBE-SVC-ONE"): ""}))
    iptables(family, "-R", chain, "1", *other)
    asyncio.run(kernel.apply({ChainKey("nat", "KUBE-SVC-ONE"): ("", None)}))

    assert (False, True) == (kernel.changed_externally(), asyncio.run(kernel.examine()))


def test_a_flush_just_before_our_change(family: Family, kernel: IptablesKernel) -> None:
    """A flush is noticed although a change of ours to another chain follows before the next look, until the next read."""
    iptables(family, "-F", "KUBE-SERVICES")
    asyncio.run(kernel.apply({ChainKey("nat", "KUBE-SVC-ONE"): (None, "")}))
    seen = kernel.changed_externally()
    asyncio.run(sync(kernel, wanted(family)))

    assert (True, False) == (seen, kernel.changed_externally())
