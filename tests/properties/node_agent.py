"""The agent without a clock, a task or a socket: changes go in, syncs run when a test says so."""

from collections.abc import Iterable

from pyproxy.agent.reconcile import Reconciler, SyncReport
from pyproxy.backends.interface import Kernel
from pyproxy.backends.iptables.program import IptablesProgram
from pyproxy.backends.iptables.ruleset import RulesetKey
from pyproxy.backends.iptables.static_rules import IptablesSettings
from pyproxy.model.change import Kind, ObjectChange, Put, Replaced
from pyproxy.model.names import ServicePortName
from pyproxy.model.node import Node
from pyproxy.model.tracker import Tracker
from pyproxy.plan.planner import PlannedService, Planner, final_plans
from pyproxy.plan.service_plan import ServicePlan
from tests.properties.kernel import TableKernel
from tests.properties.planning import ruleset_of, run_now, succeeded

NOBODY = Node(name="node1")
"""What is known of this node while its Node is not."""


class NodeAgent:
    """Tracker, program and kernel of one family, put together as `agent.agent` does."""

    def __init__(self, settings: IptablesSettings, kernel: Kernel[RulesetKey, str]) -> None:
        self.tracker = Tracker()
        self._planner = Planner([settings.family])
        self.settings = settings
        self.reconciler: Reconciler[RulesetKey, str] = Reconciler(settings.family, IptablesProgram(settings), kernel)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.tracker}, {self.reconciler})"

    @property
    def node(self) -> Node:
        """Return this node as far as it is known."""
        return self.tracker.node or NOBODY

    def tell(self, changes: Iterable[ObjectChange]) -> None:
        """Take changes in and plan what they touch."""
        for change in changes:
            self.tracker.apply(change)
        self._stage(self._planner.take_changes(self.tracker, self.node))

    def tell_again(self) -> None:
        """Take in everything that is known once more, as an informer's resync does, and plan all of it again."""
        services = tuple(self.tracker.services.values())
        slices = (one for name in self.tracker.services for one in self.tracker.slices(name))
        nodes = [self.tracker.node] if self.tracker.node else []
        self.tell([Replaced(Kind.SERVICE, services), *map(Put, slices), *map(Put, nodes)])
        self._stage(self._planner.plan(self.tracker.services, self.tracker, self.node))

    def _stage(self, services: Iterable[PlannedService]) -> None:
        for planned in services:
            for plans in planned.plans.values():
                self.reconciler.stage(plans)

    def configure(self, settings: IptablesSettings) -> None:
        """Change the settings of the family."""
        self.settings = settings
        self.reconciler.replace_program(IptablesProgram(settings))

    def plans(self) -> dict[ServicePortName, ServicePlan]:
        """Return the plans of everything that was told, made from scratch."""
        return final_plans(self.tracker, self.node, self.settings.family)

    def wanted(self) -> dict[RulesetKey, str]:
        """Return what an agent would program that is started now, made from scratch."""
        return ruleset_of(self.plans(), self.settings)


class TableAgent(NodeAgent):
    """One whose kernel is tables in memory, so that nothing has to be waited for."""

    def __init__(self, settings: IptablesSettings) -> None:
        self.kernel = TableKernel(settings.family)
        super().__init__(settings, self.kernel)

    def sync(self) -> SyncReport:
        """Bring the kernel up to what was told.

        Raises:
            ApplyError: why the sync failed.
        """
        return succeeded(run_now(self.reconciler.sync()))

    def follow(self, groups: Iterable[Iterable[ObjectChange]]) -> None:
        """Tell groups of changes, and bring the kernel up to each before the next."""
        for group in groups:
            self.tell(group)
            self.sync()

    def in_kernel(self) -> dict[RulesetKey, str]:
        """Return what of ours the kernel has."""
        return run_now(self.kernel.read())
