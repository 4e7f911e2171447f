"""The agent without clock, tasks and sockets: tests feed it changes and trigger syncs."""

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
from tests.fakes.kernel import TableKernel
from tests.properties.planning import ruleset_of, run_now, succeeded

NOBODY = Node(name="node1")
"""The own node before its Node object is known."""


class NodeAgent:
    """Tracker, planner, program and kernel of one family, combined as in `agent.agent`."""

    def __init__(self, settings: IptablesSettings, kernel: Kernel[RulesetKey, str]) -> None:
        self.tracker = Tracker()
        self.planner = Planner([settings.family])
        self.settings = settings
        self.reconciler: Reconciler[RulesetKey, str] = Reconciler(settings.family, IptablesProgram(settings), kernel)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.tracker}, {self.reconciler})"

    @property
    def node(self) -> Node:
        """Return the own node as far as it is known."""
        return self.tracker.node or NOBODY

    def apply(self, changes: Iterable[ObjectChange]) -> None:
        """Process changes and plan the affected Services."""
        for change in changes:
            self.tracker.apply(change)
        self._stage(self.planner.take_changes(self.tracker, self.node))

    def apply_again(self) -> None:
        """Process all known objects again, as in a resync of an informer, and plan them again."""
        services = tuple(self.tracker.services.values())
        slices = (one for name in self.tracker.services for one in self.tracker.slices(name))
        nodes = [self.tracker.node] if self.tracker.node else []
        self.apply([Replaced(Kind.SERVICE, services), *map(Put, slices), *map(Put, nodes)])
        self._stage(self.planner.plan(self.tracker.services, self.tracker, self.node))

    def _stage(self, services: Iterable[PlannedService]) -> None:
        for planned in services:
            for plans in planned.plans.values():
                self.reconciler.stage(plans)

    def configure(self, settings: IptablesSettings) -> None:
        """Change the settings of the family."""
        self.settings = settings
        self.reconciler.replace_program(IptablesProgram(settings))

    def plans(self) -> dict[ServicePortName, ServicePlan]:
        """Return newly computed plans for all known objects."""
        return final_plans(self.tracker, self.node, self.settings.family)

    def wanted(self) -> dict[RulesetKey, str]:
        """Return the entries that an agent started now would program."""
        return ruleset_of(self.plans(), self.settings)


class TableAgent(NodeAgent):
    """An agent whose kernel is tables in memory, so that its coroutines never wait."""

    def __init__(self, settings: IptablesSettings) -> None:
        self.kernel = TableKernel(settings.family)
        super().__init__(settings, self.kernel)

    def sync(self) -> SyncReport:
        """Sync the kernel with the known objects.

        Raises:
            ApplyError: the sync failed.
        """
        return succeeded(run_now(self.reconciler.sync()))

    def follow(self, groups: Iterable[Iterable[ObjectChange]]) -> None:
        """Process groups of changes, with a sync after each."""
        for group in groups:
            self.apply(group)
            self.sync()

    def in_kernel(self) -> dict[RulesetKey, str]:
        """Return our entries in the kernel."""
        return run_now(self.kernel.read())
