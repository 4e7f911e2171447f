"""Changes of legacy tables from inside this process, while a real iptables-legacy competes for the lock."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from pyproxy.backends.iptables.legacy_tables import open_tables
from pyproxy.backends.iptables.ruleset import FILTER
from pyproxy.errors import ApplyError
from pyproxy.linux.iptables_programs import Variant, program
from pyproxy.model.address import Family
from tests.lab.waiting import wait_until

from .each import families
from .own_namespace import dump, load, run

pytestmark = [
    pytest.mark.usefixtures("own_tables"),
    pytest.mark.filterwarnings("ignore:invalid escape sequence"),  # in python-iptables 1.2.0
]

OURS = "*filter\n:OURS - [0:0]\n-A OURS -m comment --comment first -j RETURN\nCOMMIT\n"
TWO_CHAINS = OURS.replace(":OURS", ":MORE - [0:0]\n:OURS")
FOREIGN_HALF = "*filter\n:FOREIGN - [0:0]\n-A FOREIGN -j ACCEPT\n"


def delete_ours(family: Family, *, lock_wait_seconds: float = 5.0) -> None:
    """Delete the chain OURS from the filter table, in this process."""
    with open_tables(family, [FILTER], lock_wait_seconds=lock_wait_seconds) as tables:
        tables[FILTER].delete_chains(["OURS"])
        tables[FILTER].commit()


@contextmanager
def half_a_restore(family: Family) -> Iterator[subprocess.Popen[str]]:
    """Run an iptables-legacy-restore that has read half of its input, and so holds the lock; the test ends it."""
    argv = [program(family, Variant.LEGACY, "restore"), "--noflush", "-w"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, text=True) as process:
        assert process.stdin
        process.stdin.write(FOREIGN_HALF)
        process.stdin.flush()
        wait_until(lambda: has_flock(process.pid, waits=False), "a restore that holds the lock")
        try:
            yield process
        finally:
            process.stdin.close()


def finish(process: subprocess.Popen[str]) -> None:
    """Write the other half of a restore's input, and wait until it exits."""
    process.communicate("COMMIT\n")
    assert 0 == process.returncode


def has_flock(pid: int, *, waits: bool) -> bool:
    """Return whether a process holds a lock, or waits for one, according to /proc/locks."""
    lines = (line.split()[1:] for line in Path("/proc/locks").read_text().splitlines())
    return any(line[0] == ("->" if waits else "FLOCK") and str(pid) in line for line in lines)


@families
def test_ours_comes_after_theirs(family: Family) -> None:
    """A change that starts while a restore holds the lock waits for its end, and then both are in the kernel."""
    load(family, Variant.LEGACY, OURS)
    with half_a_restore(family) as restore, ThreadPoolExecutor(1) as pool:
        ours = pool.submit(delete_ours, family)
        wait_until(ours.running, "our change to begin")
        finish(restore)
        ours.result()

    rules = dump(family, Variant.LEGACY)
    assert (False, True) == (":OURS" in rules, "-A FOREIGN -j ACCEPT" in rules)


@families
def test_theirs_comes_after_ours(family: Family) -> None:
    """An ``iptables -w`` that starts while we have a copy waits for our commit, and then both are in the kernel."""
    load(family, Variant.LEGACY, OURS)
    with open_tables(family, [FILTER]) as tables:
        tables[FILTER].delete_chains(["OURS"])
        theirs = subprocess.Popen([program(family, Variant.LEGACY), "-w", "5", "-N", "FOREIGN"])
        wait_until(lambda: has_flock(theirs.pid, waits=True), "iptables to wait for the lock")
        tables[FILTER].commit()

    assert 0 == theirs.wait()
    chains = [line for line in dump(family, Variant.LEGACY).splitlines() if line.endswith("- [0:0]")]
    assert [":FOREIGN - [0:0]"] == chains


def _without_counters(rules: str) -> list[str]:
    return [line.removeprefix("[0:0] ") for line in rules.splitlines()]


@families
def test_a_busy_lock_is_a_retryable_error(family: Family, lock: Path) -> None:
    """A lock that stays busy is a retryable error that names the lock file."""
    load(family, Variant.LEGACY, OURS)
    with half_a_restore(family) as restore:
        with pytest.raises(ApplyError, match=f"{lock}: another program has held the lock for 0.1 s") as caught:
            delete_ours(family, lock_wait_seconds=0.1)
        finish(restore)

    assert caught.value.retryable
    assert ":OURS" in dump(family, Variant.LEGACY)


def test_a_lock_file_that_cannot_be_opened_is_an_error(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock file that cannot be opened is an error that names it; nothing is changed without the lock."""
    monkeypatch.setenv("XTABLES_LOCKFILE", str(lock / "below"))
    lock.touch()

    with pytest.raises(ApplyError, match=f"{lock}/below: Not a directory"):
        delete_ours(Family.IPV4)


@families
def test_a_new_rule_past_the_lock_is_noticed(family: Family, tmp_path: Path) -> None:
    """A program that ignores the lock and adds a rule while we have a copy makes our commit fail; it can be retried."""
    load(family, Variant.LEGACY, TWO_CHAINS)
    with open_tables(family, [FILTER]) as tables:
        tables[FILTER].delete_chains(["MORE"])
        run(
            "env", f"XTABLES_LOCKFILE={tmp_path / 'other'}", program(family, Variant.LEGACY), "-A", "OURS", "-j", "DROP"
        )
        with pytest.raises(ApplyError, match="Resource temporarily unavailable") as caught:
            tables[FILTER].commit()

    assert caught.value.retryable
    assert "-A OURS -j DROP" in dump(family, Variant.LEGACY)


@families
def test_a_changed_rule_past_the_lock_is_undone(family: Family, tmp_path: Path) -> None:
    """A program that ignores the lock and replaces a rule loses it to our commit, which is why the lock is held."""
    load(family, Variant.LEGACY, TWO_CHAINS)
    change = ["-R", "OURS", "1", "-m", "comment", "--comment", "other", "-j", "RETURN"]
    with open_tables(family, [FILTER]) as tables:
        tables[FILTER].delete_chains(["MORE"])
        run("env", f"XTABLES_LOCKFILE={tmp_path / 'other'}", program(family, Variant.LEGACY), *change)
        tables[FILTER].commit()

    assert "--comment first" in dump(family, Variant.LEGACY)


@families
def test_nothing_is_written_without_a_commit(family: Family) -> None:
    """A change of a copy that is not committed does not reach the kernel, also not when the copy is refreshed."""
    load(family, Variant.LEGACY, OURS)
    before = dump(family, Variant.LEGACY)

    for _ in range(2):
        with open_tables(family, [FILTER]) as tables:
            tables[FILTER].delete_chains(["OURS"])

    assert before == dump(family, Variant.LEGACY)


@families
def test_no_other_table_is_created(family: Family) -> None:
    """Opening one table and deleting a jump to a chain of it creates no other table."""
    load(family, Variant.LEGACY, f"{OURS[:-7]}-A INPUT -j OURS\nCOMMIT\n")
    with open_tables(family, [FILTER]) as tables:
        assert 1 == tables[FILTER].delete_rule("INPUT", "-j OURS")
        tables[FILTER].delete_chains(["OURS"])
        tables[FILTER].commit()

    assert "filter\n" == Path(f"/proc/net/{'ip' if family is Family.IPV4 else 'ip6'}_tables_names").read_text()


@families
def test_every_copy_of_a_rule_is_deleted(family: Family) -> None:
    """A rule that another program added is recognised, and each copy is deleted; rules that differ in one part are kept."""
    rule = '-m conntrack --ctstate NEW -m comment --comment "two words" -j OURS'
    different = ["-m conntrack --ctstate NEW -j OURS", rule.replace("NEW", "INVALID"), rule.replace("two", "2")]
    stays = [*different, rule.replace("OURS", "ACCEPT")]
    text = "".join(f"-A INPUT {line}\n" for line in (rule, *stays, rule))
    load(family, Variant.LEGACY, f"*filter\n:OURS - [0:0]\n{text}COMMIT\n")

    with open_tables(family, [FILTER]) as tables:
        deleted = [tables[FILTER].delete_rule("INPUT", rule) for _ in range(2)]
        tables[FILTER].commit()

    lines = _without_counters(dump(family, Variant.LEGACY))
    rules = [line.removeprefix("-A INPUT ") for line in lines if line[:8] == "-A INPUT"]
    assert [2, 0] == deleted
    assert stays == rules


@families
def test_a_chain_with_a_foreign_jump_is_kept(family: Family) -> None:
    """Deleting a chain that a foreign rule jumps to is an error, and nothing is deleted."""
    load(family, Variant.LEGACY, f"{OURS[:-7]}-A INPUT -j OURS\nCOMMIT\n")
    before = dump(family, Variant.LEGACY)

    with open_tables(family, [FILTER]) as tables, pytest.raises(ApplyError, match="can't delete chain OURS") as caught:
        tables[FILTER].delete_chains(["OURS"])

    assert not caught.value.retryable
    assert before == dump(family, Variant.LEGACY)
