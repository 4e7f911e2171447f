"""Our table in the kernel: everything written can be read back, and nothing is written twice."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from pyproxy.backends.nftables.elements import ADDRESSED, CLUSTER_IPS, LAYOUT, SETS, ElementKey, pack_port
from pyproxy.backends.nftables.kernel import NftablesKernel
from pyproxy.backends.nftables.program import NftablesProgram
from pyproxy.errors import ApplyError
from pyproxy.model.address import Family, Network, parse_network
from pyproxy.model.node import LocalTraffic

from .nft_agent import (
    SERVICE_CIDRS,
    Start,
    cluster_ip,
    endpoints,
    everything,
    node_settings,
    objects_of,
    plan,
)
from .own_namespace import run

pytestmark = pytest.mark.usefixtures("needs_root")

MANY = 1000


def test_everything_is_read_back(start: Start, family: Family) -> None:
    """Elements of every set are read back as written: keys, data, ranges and comments."""
    agent = start()
    agent.put(*everything(family))

    assert agent.wanted() == agent.read()
    assert set(SETS) == {key[0] for key in agent.read() if key != LAYOUT}


def test_first_load_in_portions(start: Start, family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table filled in portions equals one filled at once, and the next start writes nothing."""
    monkeypatch.setattr(NftablesKernel, "plans_per_portion", 2)
    agent = start()
    commits = agent.commits_during(lambda: agent.put(*everything(family)))

    assert commits > len(everything(family)) // 2
    assert agent.wanted() == agent.read()
    assert not agent.kernel.changed_externally()
    assert 0 == agent.commits_during(lambda: start().put(*everything(family)))


def test_changes_are_read_back(start: Start, family: Family) -> None:
    """After changes, and after removing everything, the kernel has the wanted entries, in the end no elements."""
    agent = start()
    plans = everything(family)
    agent.put(*plans)
    agent.put(*(replace(each, cluster_endpoints=each.cluster_endpoints[:1], affinity_seconds=9) for each in plans))
    after_change = agent.read()
    expected = agent.wanted()
    agent.remove(*plans)

    assert expected == after_change
    assert agent.wanted() == agent.read()
    assert set(NftablesProgram(node_settings(family)).keys()) == set(agent.read())


def test_second_apply_writes_nothing(start: Start, family: Family) -> None:
    """A second apply reads what is wanted, and makes no transaction."""
    agent = start()
    agent.put(*everything(family))
    agent.reconciler.mark_stale()

    assert 0 == agent.commits_during(agent.sync)


def test_restart_writes_nothing(start: Start, family: Family) -> None:
    """An agent that starts with a complete table writes nothing."""
    start().put(*everything(family))
    second = start()

    assert 0 == second.commits_during(lambda: second.put(*everything(family)))


def test_restart_writes_what_changed(start: Start, family: Family) -> None:
    """Changes made while no agent ran are one transaction, and removed entries are gone."""
    start().put(*everything(family))
    second = start()
    plans = everything(family)[1:]
    plans[2] = plan(family, 3, 4, 5, 6, 7)

    second.put(*plans, plan(family, 50, 1, 2, 3, 4))

    assert second.wanted() == second.read()


def test_own_commits_are_not_external_changes(start: Start, family: Family) -> None:
    """The agent never takes its own commits for an external change."""
    agent = start()

    for action in (lambda: agent.put(*everything(family)), lambda: agent.remove(*everything(family)[:4])):
        assert 0 < agent.commits_during(action)
        assert not agent.kernel.changed_externally()


def test_change_of_endpoints_is_one_commit(start: Start, family: Family) -> None:
    """Replacing one endpoint is one transaction."""
    agent = start()
    agent.put(plan(family, 1, 1, 2, 3))

    assert 1 == agent.commits_during(lambda: agent.put(plan(family, 1, 1, 2, 4)))


def test_rules_do_not_depend_on_services(start: Start, family: Family) -> None:
    """A thousand more Services with known counts and time-outs add only elements: no chain, rule, set or map."""
    agent = start()
    agent.put(*everything(family))
    before = objects_of(agent.table)
    entries = len(agent.read())

    more = [replace(plan(family, 4000 + number, 1, 2, 3), node_port=10000 + number) for number in range(MANY)]
    pinned = [plan(family, 6000 + number, 1, 2, affinity_seconds=10800) for number in range(MANY)]
    agent.put(*more, *pinned)

    assert before == objects_of(agent.table)
    assert len(agent.read()) > entries + 10 * MANY
    assert agent.wanted() == agent.read()


def test_listing_can_be_loaded(start: Start, family: Family) -> None:
    """``nft`` accepts the output of ``nft list ruleset``, with every kind of element."""
    start().put(*everything(family))

    run("nft", "--check", "--file", "-", stdin=run("nft", "list", "ruleset"))


def test_table_is_deleted(start: Start, family: Family) -> None:
    """Removing the layout entry deletes the table."""
    agent = start()
    agent.put(*everything(family))
    present = agent.read()

    agent.do(agent.kernel.apply({key: (value, None) for key, value in present.items()}))

    assert {} == agent.read()
    assert "" == run("nft", "list", "ruleset")


def test_refused_element_raises(start: Start, family: Family) -> None:
    """A refused element is a permanent error, and its transaction has no effect."""
    agent = start()
    agent.put(plan(family, 1, 1, 2))
    before = agent.read()
    good = ElementKey(bytes((CLUSTER_IPS.number,)) + cluster_ip(family, 99))
    taken = next(key for key in before if key[0] == ADDRESSED.main.endpoints.number)
    other = endpoints(family, 9)[0]

    with pytest.raises(ApplyError) as raised:
        agent.do(agent.kernel.apply({good: (None, b""), taken: (None, other.ip + pack_port(other.port))}))

    assert not raised.value.retryable
    assert before == agent.read()


def test_unknown_ranges(start: Start, family: Family) -> None:
    """Service ranges of the last run stay until the new ones are known; then only the difference is written."""
    agent = start()
    agent.sync()
    narrow = parse_network(SERVICE_CIDRS[family])
    wide = Network(narrow.ip, narrow.prefix - 1)
    steps: list[tuple[Network, ...] | None] = [None, (narrow,), None, (wide,), ()]

    assert [0, 0, 0, 2, 1] == [agent.configure(node_settings(family, service_cidrs=ranges)) for ranges in steps]
    assert agent.wanted() == agent.read()


def test_new_settings_replace_the_table(start: Start, family: Family) -> None:
    """With another pod CIDR the table is recreated, in the transaction that deletes the old one."""
    agent = start()
    agent.put(*everything(family))
    agent.configure(node_settings(family, local_traffic=LocalTraffic(interface="other0")))

    assert agent.wanted() == agent.read()
    assert "other0" in run("nft", "list", "ruleset")
    assert "cni0" not in run("nft", "list", "ruleset")
