"""What a proxy mode has to offer: a new one is a folder beside this file, and a row in `backends.registry`.

A backend turns plans into *entries*: keys and values in named kernel tables (chains, map elements, virtual servers). Its
`Program` says which entries should exist, without any effect; its `Kernel` reads and writes them. The agent compares both.
"""

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

from pyproxy.backends.listing import RuleListing
from pyproxy.config.config import ProxyMode
from pyproxy.linux.iptables_programs import Variant
from pyproxy.model.address import Family
from pyproxy.model.names import ServicePortName
from pyproxy.model.node import Node
from pyproxy.node.context import NodeContext
from pyproxy.plan.service_plan import ServicePlan

K = TypeVar("K")
V_co = TypeVar("V_co", covariant=True)
V = TypeVar("V")


class Unsupported(NamedTuple):
    """The answer of a probe where the kernel, or a tool, lacks a feature."""

    reason: str
    """The error of the kernel or the tool."""


class Program(Protocol[K, V_co]):
    """What one backend wants in the kernel for one family. Pure; cost of a change is that of the change."""

    def put(self, name: ServicePortName, plan: ServicePlan | None) -> set[K]:
        """Take in the plan of a port (None: it is gone) and return the keys whose value may have changed."""
        ...

    def value(self, key: K) -> V_co | None:
        """Return what should be at a key; None is nothing."""
        ...

    def keys(self) -> Iterator[K]:
        """Yield every key that should have a value."""
        ...


def desired_entries(program: Program[K, V], plans: Mapping[ServicePortName, ServicePlan]) -> dict[K, V]:
    """Return every entry that should exist for plans, in the program's order.

    Args:
        program: an empty program, which takes in the plans.
        plans: final plans of all Service ports.
    """
    for name, plan in plans.items():
        program.put(name, plan)
    return {key: value for key in program.keys() if (value := program.value(key)) is not None}  # noqa: SIM118  # no dict


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

    detects_all_changes: bool
    """Whether `changed_externally` misses nothing; where it does, a full read now and then has to find it."""

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

    def changed_externally(self) -> bool:
        """Say, cheaply, whether others may have changed our tables since the last `read` or `apply`."""
        ...

    async def examine(self) -> bool:
        """Say whether others may have changed what `changed_externally` does not see; this may take a while, and is for now and then.

        Raises:
            ApplyError: the kernel's tables cannot be read.
        """
        ...

    def take_counts(self) -> KernelCounts:
        """Return what was counted since the last call."""
        ...


class Backend(Protocol):
    """One mode on this node."""

    mode: ProxyMode
    """Which mode it is."""
    families: tuple[Family, ...]
    """Families that the node supports in this mode."""

    @property
    def iptables_variant(self) -> Variant | None:
        """Return the variant of iptables that the mode writes to; None: it has no rules in iptables."""
        ...

    def is_ready_for(self, node: Node) -> bool:
        """Say whether the Node tells all that the settings need; what is missing is logged once."""
        ...

    def settings(self, family: Family, context: NodeContext) -> Hashable:
        """Return what the program depends on besides Services."""
        ...

    def program(self, settings: Any) -> Program[Any, Any]:  # noqa: ANN401  # what `settings` returned
        """Return an empty program for settings of this backend."""
        ...

    def kernel(self, family: Family) -> Kernel[Any, Any]:
        """Return the door to one family's tables."""
        ...

    def prepare(self) -> None:
        """Set the kernel settings that the mode needs; what cannot be set is logged."""
        ...

    def owns_chain(self, table: str, chain: str) -> bool:
        """Say whether a chain of iptables is one of this mode's."""
        ...


class Dumper(Protocol):
    """Lists the rules of one mode."""

    def planned(
        self, family: Family, context: NodeContext, plans: Mapping[ServicePortName, ServicePlan]
    ) -> RuleListing:
        """Return what belongs into the kernel."""
        ...

    async def live(self) -> list[RuleListing]:
        """Return what is in the kernel, of each family that has something."""
        ...

    def script(self, listing: RuleListing) -> str:
        """Return a listing, got from `planned` or `live`, as input for the tool that loads such rules."""
        ...
