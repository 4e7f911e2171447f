"""What a backend has to offer to be driven by `loop.reconcile`: the half that touches the kernel."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class KernelCounts:
    """What a backend counts beside entries; empty where the mode has no such thing."""

    rules: Mapping[str, int] = field(default_factory=dict)
    """Rules in force, by table."""
    rules_written: Mapping[str, int] = field(default_factory=dict)
    """Rules written since these counts were last taken, by table."""
    failed_cleanups: int = 0
    """Deletions of unused elements that failed since these counts were last taken."""


class Kernel(Protocol[K, V]):
    """One family's tables of one backend in the kernel of this network namespace."""

    sees_every_change: bool
    """Whether `disturbed` misses nothing; where it does, a full read now and then has to find it."""

    plans_per_portion: int | None
    """Of how many plans what is to come into an empty table may come at a time, each portion compiled while the kernel is
    at the one before; None where a change costs too much for that."""

    async def read(self) -> dict[K, V]:
        """Return every entry that is ours."""
        ...

    async def apply(self, change: Mapping[K, tuple[V | None, V | None]]) -> None:
        """Perform a change, all or nothing for each kernel table.

        Raises:
            ApplyError: it was not taken; after a refusal the caller reads back what is there.
        """
        ...

    def disturbed(self) -> bool:
        """Say, cheaply, whether others may have changed our tables since the last `read` or `apply`."""
        ...

    async def examine(self) -> bool:
        """Say whether others may have changed what `disturbed` does not see; this may take a while, and is for now and then.

        Raises:
            ApplyError: the kernel's tables cannot be read.
        """
        ...

    def take_counts(self) -> KernelCounts:
        """Return what was counted since the last call."""
        ...
