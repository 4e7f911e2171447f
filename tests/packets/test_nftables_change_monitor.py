"""An external change of our table is logged with the process and the operations."""

from __future__ import annotations

import logging
import re
import resource

import pytest

from pyproxy.backends.nftables.change_monitor import ChangeMonitor
from pyproxy.backends.nftables.layout import TABLE
from pyproxy.model.address import Family
from tests.packets.nft_agent import NftAgent, plan
from tests.packets.own_namespace import run

pytestmark = pytest.mark.usefixtures("needs_root")

OPERATIONS = {
    "add rule TABLE services counter": "rule added",
    "delete table TABLE": "table deleted",
    "flush chain TABLE services": "rule deleted",
    "add element TABLE cluster-ips { ADDRESS }": "elements added",
    "add chain TABLE other; add rule TABLE other accept; add rule TABLE other accept": "chain added, rule added (2 times)",
    "flush ruleset": "table deleted",
}
"""External changes, and part of the log message."""
ADDRESSES = {Family.IPV4: "192.0.2.1", Family.IPV6: "2001:db8::1"}


def logged(agent: NftAgent, caplog: pytest.LogCaptureFixture) -> list[str]:
    """Let the agent check for changes, and return its log messages about them."""
    caplog.clear()
    assert agent.kernel.changed_externally()
    return [message for message in caplog.messages if message.startswith(agent.table)]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_process_and_operations(agent: NftAgent, caplog: pytest.LogCaptureFixture, operation: str) -> None:
    """The message has the name and pid of the process, and what it added or deleted."""
    run("nft", operation.replace("TABLE", agent.table).replace("ADDRESS", ADDRESSES[agent.family]))

    [line] = logged(agent, caplog)
    found = re.fullmatch(rf"{agent.table}: changed by nft \(process [1-9][0-9]*\): (.*)", line)
    assert found
    assert OPERATIONS[operation] in found[1]


def test_each_transaction_is_logged_once(agent: NftAgent, caplog: pytest.LogCaptureFixture) -> None:
    """Transactions are logged in order, and not repeated at the next check."""
    for operation in ("add chain TABLE other", "delete chain TABLE other"):
        run("nft", operation.replace("TABLE", agent.table))

    lines = logged(agent, caplog)
    assert ["chain added", "chain deleted"] == [line.rpartition(": ")[2] for line in lines]
    assert [] == logged(agent, caplog)


def test_own_changes_and_foreign_tables_are_not_logged(agent: NftAgent, caplog: pytest.LogCaptureFixture) -> None:
    """Neither our own changes, by netlink or nft, nor changes of foreign tables are logged."""
    agent.put(plan(agent.family, 900, 1, 2, affinity_seconds=77))
    assert not agent.kernel.changed_externally()
    run("nft", "add table inet foreign { chain services { }; }")

    assert [] == logged(agent, caplog)


def test_more_than_the_queue_holds(agent: NftAgent, caplog: pytest.LogCaptureFixture) -> None:
    """If events are lost, the message says so."""
    elements = ", ".join(f"{number}" for number in range(65_000))
    for _ in range(20):
        script = f"add table {agent.table}2 {{ set s {{ type mark; elements = {{ {elements} }}; }}; }}"
        run("nft", "-f", "-", stdin=f"{script}\ndelete table {agent.table}2\n")

    assert any("notifications were lost" in line for line in logged(agent, caplog))


def test_without_a_subscription_changes_are_still_repaired(agent: NftAgent, caplog: pytest.LogCaptureFixture) -> None:
    """Changes are detected also if the agent cannot subscribe to events."""
    deaf = ChangeMonitor(TABLE)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with caplog.at_level(logging.INFO):
            deaf.listen()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert [
        "cannot subscribe to nf_tables events; external changes will not be attributed: Too many open files"
    ] == caplog.messages
    run("nft", f"add chain {agent.table} other")
    assert [] == deaf.take(agent.family)
