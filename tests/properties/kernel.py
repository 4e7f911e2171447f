"""One family's tables behind the interface that the agent drives: text goes in, text comes out, lines can be refused.

The law: nothing is remembered but the tables. What is applied goes through the restore text, what is read through the
save text; tables before a refused one are committed, as by ``iptables-restore``.
"""

from collections.abc import Callable, Mapping

from pyproxy.backends.interface import KernelCounts
from pyproxy.backends.iptables.mode import ownership
from pyproxy.backends.iptables.restore_text import parse_save, restore_text
from pyproxy.backends.iptables.ruleset import TABLES, RulesetKey
from pyproxy.errors import ApplyError
from pyproxy.model.address import Family
from tests.properties.tables import RestoreRefusedError, Tables, accept_all

FOREIGN_CHAIN = "CNI-FORWARD"
FOREIGN_RULES = {
    ("filter", "FORWARD"): f"-j {FOREIGN_CHAIN}",
    ("filter", "INPUT"): '-p tcp -m comment --comment "somebody else\'s" -m tcp --dport 22 -j ACCEPT',
    ("nat", "POSTROUTING"): "-s 10.9.0.0/16 -j MASQUERADE",
}


class TableKernel:
    """The tables of one family, with rules of others in them."""

    detects_all_changes = True
    plans_per_portion: int | None = None

    def __init__(self, family: Family) -> None:
        self.family = family
        self.tables = Tables()
        self.refuses: Callable[[str], bool] = accept_all
        """Which lines are refused."""
        self.is_busy = False
        """Every change fails for now, as behind a lock that another program holds."""
        self.written: list[str] = []
        """Every text that was handed in, refused ones included."""
        self._owned = ownership(family)
        self.tables.chains["filter"][FOREIGN_CHAIN] = ["-j ACCEPT"]
        for (table, chain), rule in FOREIGN_RULES.items():
            self.tables.chains[table][chain].append(rule)

    def __repr__(self) -> str:
        return repr(self.tables)

    async def read(self) -> dict[RulesetKey, str]:
        """Return what is ours."""
        found: dict[RulesetKey, str] = {}
        for table in TABLES:
            found |= parse_save(table, self.tables.save(table), self._owned)
        return found

    async def apply(self, change: Mapping[RulesetKey, tuple[str | None, str | None]]) -> None:
        """Carry out a change.

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
        """Count nothing."""
        return KernelCounts()

    def changed_externally(self) -> bool:
        """Say no: tests say themselves when something was changed."""
        return False

    async def examine(self) -> bool:
        """See nobody either."""
        return False

    def has_foreign_rules(self) -> bool:
        """Say whether everything that is not ours is as it was, and where it was: behind what is ours."""
        chains = self.tables.chains
        is_there = all(chains[table][chain][-1:] == [rule] for (table, chain), rule in FOREIGN_RULES.items())
        return is_there and chains["filter"][FOREIGN_CHAIN] == ["-j ACCEPT"]
