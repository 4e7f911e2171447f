"""Changes legacy tables from inside this process. This is the only module that imports python-iptables.

A legacy table is replaced as a whole: it is copied out of the kernel, changed in memory, and written back. libiptc
(`libiptc.c`, TC_COMMIT) takes no lock meanwhile, and the kernel (`ip_tables.c`, do_replace) answers EAGAIN only if the
*number* of entries has changed since the copy: every other change by another program would be undone silently. So the
lock of ``iptables-legacy -w`` is held from the copy to the commit.

A copy is of the whole table, so this is for small tables and short processes only. All functions block; the agent calls
them in a thread.
"""

import errno
import fcntl
import os
import re
import shlex
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from time import monotonic, sleep
from typing import Any

from pyproxy.errors import ApplyError
from pyproxy.model.address import Family

_LOCK_FILE = "/run/xtables.lock"
_LOCK_WAIT_SECONDS = 5.0
_LOCK_POLL_SECONDS = 0.05
# Errors in the words of libiptc (`libiptc.c`, TC_STRERROR) after which the same change may be accepted later.
_TRANSIENT = (os.strerror(errno.EAGAIN), "Memory allocation problem")


class LibraryError(ApplyError):
    """python-iptables, or a library that it needs, cannot be used here. The programs of iptables may still work."""


class LegacyTable:
    """A copy of one table. Nothing reaches the kernel before `commit`."""

    def __init__(self, family: Family, table: Any) -> None:  # noqa: ANN401  # iptc has no types
        self._family = family
        self._table = table

    def __repr__(self) -> str:
        return f"LegacyTable({self._family}, {self._table.name})"

    def chains(self) -> list[str]:
        """Return the names of all chains."""
        return [chain.name for chain in self._table.chains]

    def delete_rule(self, chain: str, rule: str) -> int:
        """Delete every copy of a rule from a chain, and return how many there were.

        Args:
            chain: the name of an existing chain.
            rule: matches and a target, as `_build` reads them.
        """
        with _mapped_errors(repr(self)):
            built = _build(self._family, rule)
            found = 0
            while True:
                try:
                    self._table.delete_entry(chain, built.rule, built.mask)
                except _iptc().IPTCError:
                    return found  # the chain exists, so the only possible error is that it has no such rule
                found += 1

    def delete_chains(self, chains: Collection[str]) -> None:
        """Delete chains with all their rules.

        Raises:
            ApplyError: a rule of a chain that is kept jumps to one of them.
        """
        with _mapped_errors(repr(self)):
            # All rules first: a chain that is the target of a jump cannot be deleted, and these jump to each other.
            for chain in chains:
                self._table.flush_entries(chain)
            for chain in chains:
                self._table.delete_chain(chain)

    def commit(self) -> None:
        """Write the table to the kernel if it was changed, and copy it again.

        Raises:
            ApplyError: the kernel refused it, and has the table that it had before.
        """
        with _mapped_errors(repr(self)):
            self._table.commit()
            self._table.refresh()


@contextmanager
def open_tables(
    family: Family, names: Collection[str], *, lock_wait_seconds: float = _LOCK_WAIT_SECONDS
) -> Iterator[dict[str, LegacyTable]]:
    """Copy tables out of the kernel, and hold the xtables lock until they are closed. A missing table is created.

    Raises:
        LibraryError: python-iptables cannot be used.
        ApplyError: the lock is busy (retryable), or the tables cannot be read.
    """
    iptc = _iptc()
    table_type = iptc.Table if family is Family.IPV4 else iptc.Table6
    with ExitStack() as stack:
        stack.enter_context(_lock(lock_wait_seconds))
        tables = {}
        for name in names:
            with _mapped_errors(f"{family}: table {name}"):
                # iptc keeps one object for each table for ever, which may have an old copy. With autocommit, the default,
                # it would write that copy to the kernel whenever it is refreshed, closed or garbage-collected.
                table = table_type(name, autocommit=False)
                table.refresh()
                stack.callback(table.close)
            tables[name] = LegacyTable(family, table)
        yield tables


@contextmanager
def _lock(wait_seconds: float) -> Iterator[None]:
    # iptables-legacy uses flock(2) on the same file (`xshared.c`, xtables_lock).
    path = os.environ.get("XTABLES_LOCKFILE") or _LOCK_FILE
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        message = f"{path}: {error.strerror}"
        raise ApplyError(message, retryable=False) from error
    deadline = monotonic() + wait_seconds
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                # flock has no time limit, so this polls.
                if monotonic() >= deadline:
                    message = f"{path}: another program has held the lock for {wait_seconds:g} s"
                    raise ApplyError(message, retryable=True) from None
                sleep(_LOCK_POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)


def _build(family: Family, rule: str) -> Any:  # noqa: ANN401  # iptc has no types
    # Hooks and probes have no other parts than ``[! ] -m MATCH --OPTION VALUE … -j TARGET``.
    iptc = _iptc()
    built = iptc.Rule() if family is Family.IPV4 else iptc.Rule6()
    words = iter(shlex.split(rule))
    match, inverted = None, ""
    for word in words:
        if word == "!":
            inverted = word
            continue
        if word == "-m":
            match = built.create_match(next(words))
        elif word == "-j":
            # To find out whether a name is a chain, iptc would open all five tables, which creates them.
            built.create_target("RETURN").standard_target = next(words)
        elif match is not None and word.startswith("--"):
            match.set_parameter(word.removeprefix("--"), inverted + next(words))
        else:
            message = f"{word!r} in {rule!r} is not supported here"
            raise ValueError(message)
        inverted = ""
    return built


@contextmanager
def _mapped_errors(what: str) -> Iterator[None]:
    iptc = _iptc()
    try:
        yield
    except (iptc.IPTCError, iptc.XTablesError) as error:
        # python-iptables formats texts of the C library as bytes, so they come as b'…'.
        message = re.sub(r"b'([^']*)'", r"\1", f"{what}: {error}")
        raise ApplyError(message, retryable=any(text in message for text in _TRANSIENT)) from error


def _iptc() -> Any:  # noqa: ANN401  # it has no types
    try:
        # Here, because importing it takes 12 MB, and 160 ms for the search for its libraries.
        import iptc  # noqa: PLC0415  # see above
    except Exception as error:  # a missing library raises different types, depending on the library
        message = f"python-iptables cannot be used: {error}"
        raise LibraryError(message, retryable=False) from error
    return iptc
