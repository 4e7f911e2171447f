"""Who is told of the agent's work. The agent's behaviour never depends on what an observer does with it."""

from typing import Any

from pyproxy.agent.reconcile import Reconciler, SyncReport
from pyproxy.model.address import Family
from pyproxy.model.change import Kind, ObjectChange
from pyproxy.model.request_record import RequestRecord
from pyproxy.model.tracker import Triggers


class Observer:
    """Is told of everything and keeps nothing: the observer of an agent without metrics."""

    def delivered(self, change: ObjectChange) -> None:
        """Take note that a source told something."""

    def marked_stale(self, family: Family) -> None:
        """Take note that others may have changed the kernel: what the next sync finds wrong is their work."""

    def queued(self) -> None:
        """Take note, again and again, that there is work that waits for a sync."""

    def synced(self, reconciler: Reconciler[Any, Any], report: SyncReport) -> None:
        """Record a sync of a family, successful or not: what it did, what it cost and what is in quarantine."""

    def planned(self, triggers: Triggers) -> None:
        """Take note that everything delivered so far is taken up by the sync that begins.

        Args:
            triggers: when the changes behind new versions of slices were made.
        """

    def settled(self, reconciler: Reconciler[Any, Any]) -> None:
        """Take note that the kernel has what was taken up; but for what is in quarantine."""

    def requested(self, exchange: RequestRecord) -> None:
        """Take note of a request to the API server."""

    def watched(self, kind: Kind, reason: str) -> None:
        """Take note, again and again, of why objects of a kind do not arrive; with an empty reason, that they do."""

    def answered(self, path: str, code: int) -> None:
        """Take note, in the thread of the request, of an answer of the health server and its HTTP status."""

    def listeners_changed(self, family: Family, change: int) -> None:
        """Record, in the relay's thread, that so many more localhost node ports are served; -1: one less."""

    def listening_failed(self, family: Family) -> None:
        """Record, in the relay's thread, that a localhost node port could not be listened on."""

    def cleaned_flows(self, family: Family, count: int, seconds: float) -> None:
        """Take note of a walk through connection tracking: how many entries it deleted, and how long it took."""
