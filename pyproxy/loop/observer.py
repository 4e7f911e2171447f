"""Who is told of the agent's work. The agent's behaviour never depends on what an observer does with it."""

from typing import Any

from pyproxy.apply.kernel import Kernel
from pyproxy.loop.reconcile import Reconciler, SyncReport
from pyproxy.model.address import Family
from pyproxy.model.change import Change


class Observer:
    """Is told of everything and keeps nothing: the observer of an agent without metrics."""

    def delivered(self, change: Change) -> None:
        """Take note that a source told something."""

    def distrusted(self, family: Family) -> None:
        """Take note that others may have changed the kernel: what the next sync finds wrong is their work."""

    def planned(self) -> None:
        """Take note that everything delivered so far is taken up by the sync that begins."""

    def cleaned_flows(self, family: Family, count: int, seconds: float) -> None:
        """Take note of a walk through connection tracking: how many entries it deleted, and how long it took."""

    def kernel(self, family: Family, kernel: Kernel[Any, Any]) -> Kernel[Any, Any]:  # noqa: ARG002  # for others to use
        """Return the kernel that the agent is to use in place of the given one."""
        return kernel

    async def sync(self, reconciler: Reconciler[Any, Any]) -> SyncReport:
        """Have a family synced.

        Raises:
            ApplyError: see `Reconciler.sync`.
        """
        return await reconciler.sync()
