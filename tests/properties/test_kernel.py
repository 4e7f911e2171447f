"""The kernel of this machine stores the wanted rules, and the in-memory tables of other tests behave like it.

Each test runs in its own network namespace, and each example starts with empty tables.
"""

import asyncio
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyproxy.backends.iptables.kernel import IptablesKernel, RestoreError, restore
from pyproxy.backends.iptables.mode import ownership
from pyproxy.backends.iptables.restore_text import restore_text
from pyproxy.backends.iptables.ruleset import TABLES, RulesetKey
from pyproxy.backends.iptables.static_rules import IptablesSettings
from pyproxy.linux.iptables_programs import Variant, program
from pyproxy.linux.ruleset_counter import LegacyCounter, NftGeneration
from pyproxy.model.address import Family
from pyproxy.model.change import ObjectChange
from tests.fakes.node_agent import NodeAgent
from tests.fakes.tables import HOOKS, Chains, RestoreRefusedError, Tables
from tests.packets.each import families, variants
from tests.packets.own_namespace import own_namespace, run
from tests.properties.planning import difference, plans_of, ruleset_of, succeeded
from tests.properties.strategies import Cluster, clusters, iptables_settings
from tests.properties.test_reconcile import walks

pytestmark = pytest.mark.usefixtures("needs_root")

FEW = settings(max_examples=max(1, settings().max_examples // 10))
"""An example starts dozens of processes."""
MISTAKES = (
    "-A KUBE-SERVICES -j KUBE-NOWHERE",
    "-A KUBE-NOWHERE -j RETURN",
    "-D KUBE-SERVICES -j RETURN",
    "-X KUBE-SERVICES",
    "-X KUBE-NOWHERE",
)
"""Lines that always fail: there are jumps to KUBE-SERVICES."""


@pytest.fixture(scope="module", autouse=True)
def namespace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Enter a new network namespace, with its own xtables lock."""
    path = tmp_path_factory.mktemp("xtables") / "lock"
    with pytest.MonkeyPatch.context() as patch, own_namespace():
        patch.setenv("XTABLES_LOCKFILE", str(path))
        yield path


def empty_tables(family: Family, variant: Variant) -> None:
    """Remove every rule and chain."""
    stem = "iptables" if family is Family.IPV4 else "ip6tables"
    run(f"{stem}-{variant.value}-restore", stdin="*filter\nCOMMIT\n*nat\nCOMMIT\n")


@contextmanager
def opened_kernel(family: Family, variant: Variant) -> Iterator[IptablesKernel]:
    """Open the kernel with empty tables."""
    empty_tables(family, variant)
    if variant is Variant.LEGACY:
        legacy = LegacyCounter(family, TABLES)
        with closing(legacy):
            yield IptablesKernel(family, variant, legacy, ownership(family))
    else:
        generation = NftGeneration()
        with closing(generation):
            yield IptablesKernel(family, variant, generation.counter(), ownership(family))


@variants
@families
@FEW
@given(st.data(), walks())
def test_walk(variant: Variant, family: Family, data: st.DataObject, walk: list[list[ObjectChange]]) -> None:
    """After every group of changes the kernel has exactly the wanted rules, and a second sync writes nothing."""
    chosen = data.draw(iptables_settings(family))

    async def follow(kernel: IptablesKernel) -> None:
        agent = NodeAgent(chosen, kernel)
        for group in walk:
            agent.apply(group)
            succeeded(await agent.reconciler.sync())

            assert agent.wanted() == await kernel.read()
            agent.apply_again()
            agent.reconciler.mark_stale()
            assert 0 == succeeded(await agent.reconciler.sync()).entries_changed

    with opened_kernel(family, variant) as kernel:
        asyncio.run(follow(kernel))


def listed(lines: list[str]) -> Chains:
    """Return the chains and rules in ``iptables-save`` output of a table."""
    chains: Chains = {line[1 : line.index(" ")]: [] for line in lines if line.startswith(":")}
    for line in lines:
        if line.startswith("-A "):
            _, chain, rule = line.split(" ", 2)
            chains[chain].append(rule)
    return chains


async def is_accepted(family: Family, variant: Variant, text: str) -> bool:
    """Load restore input into the kernel; return whether it was accepted."""
    try:
        await restore(family, variant, text)
    except RestoreError:
        return False
    return True


def is_accepted_in_memory(tables: Tables, text: str) -> bool:
    """Load restore input into tables in memory; return whether it was accepted."""
    try:
        tables.restore(text)
    except RestoreRefusedError:
        return False
    return True


@st.composite
def restore_texts(draw: st.DrawFn, family: Family) -> list[str]:
    """Draw restore inputs that lead from state to state of a node, some of them with a mistake."""
    texts: list[str] = []
    present = ruleset_of({}, IptablesSettings(family=family))
    texts.append(restore_text(difference({}, present)))
    for cluster in draw(st.lists(clusters(), min_size=1, max_size=3)):
        wanted = rules_for(cluster, draw(iptables_settings(family)))
        text = restore_text(difference(present, wanted))
        if text:
            texts += [draw(spoiled(text)), text]
        present = wanted
    return texts


def rules_for(cluster: Cluster, node_settings: IptablesSettings) -> dict[RulesetKey, str]:
    """Return the rules that a node wants in its kernel."""
    return ruleset_of(plans_of(cluster, node_settings.family), node_settings)


@st.composite
def spoiled(draw: st.DrawFn, text: str) -> str:
    """Draw restore input with an additional invalid line, or without a line that it needs."""
    lines = text.splitlines()
    place = draw(st.integers(1, len(lines) - 1))
    if draw(st.booleans()) and lines[place].startswith(":"):
        del lines[place]
    else:
        lines.insert(place, draw(st.sampled_from(MISTAKES)))
    return "\n".join(lines) + "\n"


@variants
@families
@FEW
@given(st.data())
def test_tables_in_memory(variant: Variant, family: Family, data: st.DataObject) -> None:
    """Tables in memory accept and refuse the same input as the kernel, and have the same rules afterwards."""
    empty_tables(family, variant)
    tables = Tables()
    texts = data.draw(restore_texts(family))

    async def compare() -> None:
        for text in texts:
            assert is_accepted_in_memory(tables, text) == await is_accepted(family, variant, text), text
            for table in HOOKS:
                in_kernel = listed(run(program(family, variant, "save"), "-t", table).splitlines())
                assert listed(tables.save(table)) == in_kernel

    asyncio.run(compare())
