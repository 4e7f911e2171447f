"""The legacy tables from inside this process. The one module that imports python-iptables.

A legacy table is replaced whole: it is copied out, changed in memory, and put back. libiptc (`libiptc.c`,
TC_COMMIT) takes no lock meanwhile, and the kernel (`ip_tables.c`, do_replace) answers EAGAIN only if the
*number* of entries is another by then: whatever else an agent changed in between is silently undone. So
the law of this file: from the copy to the commit the lock of `iptables-legacy -w` is held.

The copy is of the whole table: for small tables and short processes only. All functions block; the agent calls
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
# What libiptc says where the same change may go through later (`libiptc.c`, TC_STRERROR).
_PASSING = (os.strerror(errno.EAGAIN), "Memory allocation problem")


class LibraryError(ApplyError):
    """python-iptables, or a library that it needs, cannot be used here; the programs of iptables may do."""


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

    def create_chain(self, chain: str) -> None:
        """Add a chain.

        Raises:
            ApplyError: there is one of that name.
        """
        with _mapped_errors(repr(self)):
            self._table.create_chain(chain)

    def append_rule(self, chain: str, rule: str) -> None:
        """Add a rule, given as `_build` reads it, at the end of a chain.

        Raises:
            ApplyError: neither iptables' extensions nor the kernel know such a rule.
        """
        with _mapped_errors(repr(self)):
            self._table.append_entry(chain, _build(self._family, rule).rule)

    def delete_rule(self, chain: str, rule: str) -> int:
        """Delete every copy of a rule from a chain and return how many there were."""
        with _mapped_errors(repr(self)):
            built = _build(self._family, rule)
            found = 0
            while self._deleted(chain, built):
                found += 1
            return found

    def _deleted(self, chain: str, built: Any) -> bool:  # noqa: ANN401  # iptc has no types
        try:
            self._table.delete_entry(chain, built.rule, built.mask)
        except _iptc().IPTCError:
            return False  # the only thing that can be wrong with a chain that exists: it has no such rule
        return True

    def delete_chains(self, chains: Collection[str]) -> None:
        """Delete chains with all their rules.

        Raises:
            ApplyError: a rule in a chain that stays jumps to one of them.
        """
        with _mapped_errors(repr(self)):
            # First all rules: the chains jump to each other.
            for chain in chains:
                self._table.flush_entries(chain)
            for chain in chains:
                self._table.delete_chain(chain)

    def commit(self) -> None:
        """Put the table back into the kernel, if anything was changed, and copy it out again.

        Raises:
            ApplyError: it was not taken, and the kernel has what it had.
        """
        with _mapped_errors(repr(self)):
            self._table.commit()
            self._table.refresh()


@contextmanager
def open_tables(
    family: Family, names: Collection[str], *, lock_wait_seconds: float = _LOCK_WAIT_SECONDS
) -> Iterator[dict[str, LegacyTable]]:
    """Copy tables out of the kernel, and hold iptables' lock until they are closed. A missing table is created.

    Raises:
        LibraryError: python-iptables cannot be used.
        ApplyError: the lock is busy (retryable), or the tables are not to be had.
    """
    _iptc()
    with ExitStack() as stack:
        stack.enter_context(_lock(lock_wait_seconds))
        yield {name: LegacyTable(family, stack.enter_context(_open_table(family, name))) for name in names}


@contextmanager
def _open_table(family: Family, name: str) -> Iterator[Any]:
    with _mapped_errors(f"{family}: table {name}"):
        iptc = _iptc()
        table_type = iptc.Table if family is Family.IPV4 else iptc.Table6
        # There is one object for each table, kept for ever, and it may have an old copy. With autocommit, which is
        # the default, it would write that back whenever it is refreshed, closed or collected.
        table = table_type(name, autocommit=False)
        table.refresh()
    try:
        yield table
    finally:
        table.close()


@contextmanager
def _lock(wait_seconds: float) -> Iterator[None]:
    """Hold the lock that iptables-legacy holds (`xshared.c`, xtables_lock), in the same file."""
    path = os.environ.get("XTABLES_LOCKFILE") or _LOCK_FILE
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        message = f"{path}: {error.strerror}"
        raise ApplyError(message, retryable=False) from error
    try:
        _wait_for(descriptor, path, wait_seconds)
        yield
    finally:
        os.close(descriptor)


def _wait_for(descriptor: int, path: str, seconds: float) -> None:
    deadline = monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if monotonic() >= deadline:
                message = f"{path}: another program has held the lock for {seconds:g} s"
                raise ApplyError(message, retryable=True) from None
            sleep(_LOCK_POLL_SECONDS)
        else:
            return


def _build(family: Family, rule: str) -> Any:  # noqa: ANN401  # iptc has no types
    """Build a rule from ``[! ] -m MATCH --OPTION VALUE … -j TARGET``, which is all that hooks and probes are made of."""
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
            # A target made by the name of a chain would first open, and so create, all five tables.
            built.create_target("RETURN").standard_target = next(words)
        elif match is not None and word.startswith("--"):
            match.set_parameter(word.removeprefix("--"), inverted + next(words))
        else:
            message = f"{word!r} in {rule!r} is beyond this reader"
            raise ValueError(message)
        inverted = ""
    return built


@contextmanager
def _mapped_errors(what: str) -> Iterator[None]:
    iptc = _iptc()
    try:
        yield
    except (iptc.IPTCError, iptc.XTablesError) as error:
        # The text of an error is bytes to python-iptables, and so in quotes.
        message = re.sub(r"b'([^']*)'", r"\1", f"{what}: {error}")
        raise ApplyError(message, retryable=any(text in message for text in _PASSING)) from error


def _iptc() -> Any:  # noqa: ANN401  # it has no types
    try:
        # 12 MB, and 160 ms for the search for its libraries.
        import iptc  # noqa: PLC0415  # see above
    except Exception as error:  # what it raises where a library is missing depends on which
        message = f"python-iptables cannot be used: {error}"
        raise LibraryError(message, retryable=False) from error
    return iptc
