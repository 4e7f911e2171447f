"""The protocols of a proxy mode. A new mode is a folder beside this file, and a row in `backends.registry`.

A backend turns plans into *entries*: keys and values in named kernel tables (chains, map elements, virtual servers). Its
`Program` computes which entries should exist, without side effects; its `Kernel` reads and writes them. The agent compares
the two.
"""

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, Self, TypeVar

from pyproxy.backends.explanation import Interpreter
from pyproxy.backends.listing import ListedRule, RuleListing
from pyproxy.config.config import Config, ProxyMode
from pyproxy.linux.iptables_programs import Variant
from pyproxy.model.address import Family, Network
from pyproxy.model.names import ServicePortName
from pyproxy.model.node import Node
from pyproxy.node.context import NodeContext
from pyproxy.plan.service_plan import ServicePlan
from pyproxy.serve.mode_metrics import ModeMetrics, PacketCount

K = TypeVar("K")
V_co = TypeVar("V_co", covariant=True)
V = TypeVar("V")


class Unsupported(NamedTuple):
    """The answer of a probe where the kernel, or a tool, lacks a feature."""

    reason: str
    """The error of the kernel or the tool."""


class Program(Protocol[K, V_co]):
    """The entries that should exist in one family. Pure; the cost of a change depends on its size only."""

    def put(self, name: ServicePortName, plan: ServicePlan | None) -> set[K]:
        """Record the plan of a port (None: it was removed) and return the keys whose value may have changed."""
        ...

    def value(self, key: K) -> V_co | None:
        """Return the value that a key should have; None: the entry should not exist."""
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


def changed_entries(
    keys: Iterable[K], present: Mapping[K, V], wanted_value: Callable[[K], V | None]
) -> dict[K, tuple[V | None, V | None]]:
    """Return the entries that differ, each with its present and its wanted value.

    Syncs, the detection of drift and `pyproxy plan` all compare with this function.

    Args:
        keys: the entries to compare.
        present: the entries in the kernel.
        wanted_value: returns the value that an entry should have; None: it should not exist.
    """
    present_value = present.get
    return {key: pair for key in keys if (pair := (present_value(key), wanted_value(key)))[0] != pair[1]}


@dataclass(frozen=True, slots=True)
class KernelCounts:
    """Numbers for metrics that do not follow from entries; empty in modes that do not count."""

    rules: Mapping[str, int] = field(default_factory=dict)
    """Our rules in the kernel, by table."""
    rules_written: Mapping[str, int] = field(default_factory=dict)
    """Rules written since these counts were last taken, by table."""
    failed_cleanups: int = 0
    """Deletions of unused elements that failed since these counts were last taken."""


class Kernel(Protocol[K, V]):
    """One family's tables of one backend in the kernel of this network namespace."""

    detects_all_changes: bool
    """Whether `changed_externally` detects every change. If not, periodic full reads find what it misses."""

    @property
    def change_descriptor(self) -> int | None:
        """Return a file descriptor that is readable from a change of the rules on until the next `changed_externally`.

        None: there are no notifications at the moment, so `changed_externally` has to be called often.
        """
        ...

    plans_per_portion: int | None
    """The number of plans in a portion of the first load; each portion is compiled while the kernel processes the one before.

    None: the first load is one change, because each change costs too much.
    """

    async def read(self) -> dict[K, V]:
        """Return every entry of ours.

        Raises:
            ApplyError: the kernel's tables cannot be read.
        """
        ...

    async def peek(self) -> dict[K, V]:
        """Return what `read` returns, without its effects on `apply`, which may run and change entries meanwhile.

        Raises:
            ApplyError: the kernel's tables cannot be read.
        """
        ...

    def leftovers(self) -> Collection[K]:
        """Return entries that may be in the kernel although no program wants them, and that are not drift.

        They are foreign, or pyproxy deletes them later: draining real servers, lingering elements.
        """
        ...

    async def apply(self, change: Mapping[K, tuple[V | None, V | None]]) -> None:
        """Perform a change, as a whole or not at all in each kernel table.

        Raises:
            ApplyError: it was refused; other tables may have been changed, so the caller reads what is there.
        """
        ...

    def changed_externally(self) -> bool:
        """Return whether another program may have changed our tables since the last `read` or `apply`. Takes microseconds."""
        ...

    async def examine(self) -> bool:
        """Return whether another program made a change that `changed_externally` misses. May take long; called periodically.

        Raises:
            ApplyError: the kernel's tables cannot be read.
        """
        ...

    def take_counts(self) -> KernelCounts:
        """Return the current counts, and start those of writes and failures from 0 again."""
        ...


class Backend(Protocol):
    """One mode on this node."""

    mode: ProxyMode
    metrics: ModeMetrics
    follows_service_cidrs: bool
    """Whether the rules depend on ServiceCIDRs."""
    follows_local_ips: bool
    """Whether the rules depend on the addresses that the node has at the moment."""
    families: tuple[Family, ...]
    """The families that the node supports in this mode."""

    @classmethod
    async def open(cls, config: Config) -> Self:
        """Check that the node has what the mode needs, and choose between variants.

        Raises:
            ConfigError: the node lacks something; the message names it.
        """
        ...

    @staticmethod
    async def choose_iptables_variant(config: Config) -> Variant | None:
        """Return the variant of iptables that the mode would use on this node, without writing a rule; None if it uses none."""
        ...

    @staticmethod
    def owns_chain(table: str, chain: str) -> bool:
        """Return whether an iptables chain belongs to this mode."""
        ...

    @property
    def iptables_variant(self) -> Variant | None:
        """Return the variant of iptables that the mode uses; None: it has no iptables rules."""
        ...

    def is_ready_for(self, node: Node) -> bool:
        """Return whether the Node has every field that the settings need; a missing field is logged once."""
        ...

    def settings(self, family: Family, context: NodeContext) -> Hashable:
        """Return the settings that the program depends on, besides Services. Other settings need a new program."""
        ...

    def program(self, settings: Any) -> Program[Any, Any]:  # noqa: ANN401  # what `settings` returned
        """Return an empty program for settings of this backend."""
        ...

    def kernel(self, family: Family) -> Kernel[Any, Any]:
        """Return the reader and writer of one family's tables."""
        ...

    def prepare(self) -> bool:
        """Set the sysctls that the mode needs, and return whether all have their value; a failure is logged."""
        ...

    def node_port_ips(self, family: Family, context: NodeContext) -> tuple[bytes, ...] | None:
        """Return the addresses on which health check node ports answer, sorted; None means all addresses of the node."""
        ...

    def node_port_networks(
        self, family: Family, context: NodeContext, local_networks: Collection[Network]
    ) -> Collection[Network]:
        """Return the networks on which node ports answer.

        Args:
            family: of the networks.
            context: this node.
            local_networks: everything that is local to the node: single addresses and blocks.
        """
        ...

    def relays_localhost(self, family: Family) -> bool:
        """Return whether the agent's relay serves node ports on 127.0.0.1 or ::1, because rules cannot."""
        ...

    def packet_counts(self) -> Collection[PacketCount]:
        """Return the packet counters that the mode's rules have."""
        ...

    def close(self) -> None:
        """Close the sockets that the mode opened. The rules stay in the kernel."""
        ...


class Dumper(Protocol):
    """Lists the rules of one mode."""

    script_formats: frozenset[str]
    """Values of ``--output`` for which `script` is printed."""
    scripts_hold_one_family: bool
    """Whether a different program loads the script of each family, so that both cannot be one input."""
    rule_noun: str
    """What a `ListedRule` is in this mode: rule, element or entry."""

    def program(self, family: Family, context: NodeContext, present: Mapping[Any, Any]) -> Program[Any, Any]:
        """Return an empty program with the settings that the agent would have on this node.

        Args:
            family: of the program.
            context: this node.
            present: the entries in the kernel, which show what the agent found when it tested the kernel; may be empty.
        """
        ...

    async def read(self) -> dict[Family, dict[Any, Any]]:
        """Return the entries in the kernel, as `Kernel.read` does, for each family that the node supports. Writes nothing.

        Raises:
            ApplyError: they cannot be read.
            ConfigError: the node does not support the mode.
        """
        ...

    def leftovers(self, family: Family, entries: Mapping[Any, Any]) -> Collection[Any]:
        """Return those of the entries in the kernel that a sync leaves in place for now, if no program wants them."""
        ...

    def listing(self, family: Family, entries: Mapping[Any, Any], also: Mapping[Any, Any]) -> RuleListing:
        """Return entries as a listing.

        Args:
            family: of the entries.
            entries: from `read` or from a program.
            also: other entries, not listed, whose names of Service ports are used where an entry has none.
        """
        ...

    def users(self, family: Family, keys: Collection[Any], entries: Mapping[Any, Any]) -> list[ServicePortName]:
        """Return the Service ports that use some of these entries together, sorted.

        Args:
            family: of the entries.
            keys: the entries to look for. Those that belong to one Service port are ignored. If all Service ports need one
                of them, nothing is returned.
            entries: all entries.
        """
        ...

    def endpoint(self, rule: ListedRule) -> str | None:
        """Return the endpoint to which a rule sends connections, as ``IP:PORT``; None if it does not."""
        ...

    def planned(
        self, family: Family, context: NodeContext, plans: Mapping[ServicePortName, ServicePlan]
    ) -> RuleListing:
        """Return the rules that the agent would write for these plans."""
        ...

    async def live(self) -> list[RuleListing]:
        """Return the rules that are in the kernel, for each family that has any."""
        ...

    def script(self, listing: RuleListing) -> str:
        """Return a listing from `planned` or `live` as input for the tool that loads such rules."""
        ...

    def interpreter(
        self, family: Family, context: NodeContext, plans: Mapping[ServicePortName, ServicePlan]
    ) -> Interpreter:
        """Return an interpreter of the rules that the agent would write for these plans."""
        ...
