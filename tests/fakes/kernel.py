"""The tables of one family in memory, with the kernel interface of the agent; lines of input can be refused.

The tables are the only state. Changes go through restore text, and reads through save text. As with
``iptables-restore``, tables before a refused one are committed.
"""

from collections.abc import Callable, Mapping

from pyproxy.backends.interface import KernelCounts
from pyproxy.backends.iptables.mode import ownership
from pyproxy.backends.iptables.restore_text import parse_save, restore_text
from pyproxy.backends.iptables.ruleset import TABLES, RulesetKey
from pyproxy.errors import ApplyError
from pyproxy.model.address import Family
from tests.fakes.tables import RestoreRefusedError, Tables, accept_all

FOREIGN_CHAIN = "CNI-FORWARD"
FOREIGN_RULES = {
    ("filter", "FORWARD"): f"-j {FOREIGN_CHAIN}",
    ("filter", "INPUT"): '-p tcp -m comment --comment "foreign" -m tcp --dport 22 -j ACCEPT',
    ("nat", "POSTROUTING"): "-s 10.9.0.0/16 -j MASQUERADE",
}


class TableKernel:
    """The tables of one family, with foreign rules."""

    detects_all_changes = True
    change_descriptor: int | None = None
    plans_per_portion: int | None = None

    def __init__(self, family: Family) -> None:
        self.family = family
        self.tables = Tables()
        self.refuses: Callable[[str], bool] = accept_all
        """Returns whether a line is refused."""
        self.is_busy = False
        """Whether every change fails, as if another program held the lock."""
        self.written: list[str] = []
        """All restore texts so far, including refused ones."""
        self._owned = ownership(family)
        self.tables.chains["filter"][FOREIGN_CHAIN] = ["-j ACCEPT"]
        for (table, chain), rule in FOREIGN_RULES.items():
            self.tables.chains[table][chain].append(rule)

    def __repr__(self) -> str:
        return repr(self.tables)

    async def read(self) -> dict[RulesetKey, str]:
        """Return our entries."""
        found: dict[RulesetKey, str] = {}
        for table in TABLES:
            found |= parse_save(table, self.tables.save(table), self._owned)
        return found

    async def peek(self) -> dict[RulesetKey, str]:
        """Return our entries."""
        return await self.read()

    def leftovers(self) -> tuple[RulesetKey, ...]:
        """Return nothing."""
        return ()

    async def apply(self, change: Mapping[RulesetKey, tuple[str | None, str | None]]) -> None:
        """Apply a change.

        Raises:
            ApplyError: a line was refused, or the kernel is busy.
        """
        text = restore_text(change)
        self.written.append(text)
        if self.is_busy:
            message = "busy"
            raise ApplyError(message, retryable=True)
        try:
            self.tables.restore(text, self.refuses)
        except RestoreRefusedError as error:
            raise ApplyError(str(error), retryable=False) from error

    def take_counts(self) -> KernelCounts:
        """Return no counts."""
        return KernelCounts()

    def changed_externally(self) -> bool:
        """Return False: tests report external changes themselves."""
        return False

    async def examine(self) -> bool:
        """Return False, like `changed_externally`."""
        return False

    def has_foreign_rules(self) -> bool:
        """Return whether the foreign rules are unchanged, and still behind our rules."""
        chains = self.tables.chains
        is_there = all(chains[table][chain][-1:] == [rule] for (table, chain), rule in FOREIGN_RULES.items())
        return is_there and chains["filter"][FOREIGN_CHAIN] == ["-j ACCEPT"]
