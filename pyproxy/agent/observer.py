"""The interface of observers, which record the work of the agent. The agent never depends on what they do."""

from collections.abc import Iterable
from typing import Any

from pyproxy.agent.reconcile import Reconciler, SyncReport
from pyproxy.agent.status_board import ServiceSource
from pyproxy.model.address import Family
from pyproxy.model.change import Kind, ObjectChange
from pyproxy.model.node import Node
from pyproxy.model.request_record import RequestRecord
from pyproxy.model.tracker import Triggers


class Observer:
    """Records nothing: the observer of an agent without metrics."""

    def serves(self, services: ServiceSource, current_at: float | None) -> None:
        """Record where the Services of the agent can be listed.

        Args:
            services: lists them.
            current_at: when the rules of an earlier run were last known to be up to date, in seconds since 1970.
        """

    def knows_node(self, node: Node) -> None:
        """Record the Node as plans use it. Called repeatedly."""

    def problems_changed(self, appeared: Iterable[str], gone: Iterable[str]) -> None:
        """Record what is wrong with input objects, and what is not wrong any more."""

    def delivered(self, change: ObjectChange) -> None:
        """Record a change that a source delivered."""

    def queued(self) -> None:
        """Record that changes wait for a sync; called repeatedly."""

    def synced(self, reconciler: Reconciler[Any, Any], report: SyncReport) -> None:
        """Record a sync of a family, successful or not."""

    def checked(self, family: Family, seconds: float) -> None:
        """Record a comparison of all entries with the kernel outside of a sync, and its duration."""

    def planned(self, triggers: Triggers) -> None:
        """Record that the sync that starts now includes everything that was delivered.

        Args:
            triggers: times of the changes that led to new versions of slices.
        """

    def settled(self, reconciler: Reconciler[Any, Any]) -> None:
        """Record that all of this is in the kernel, except for quarantined ports."""

    def requested(self, exchange: RequestRecord) -> None:
        """Record a request to the API server."""

    def watched(self, kind: Kind, reason: str) -> None:
        """Record why objects of a kind do not arrive; an empty reason means that they do. Called repeatedly."""

    def answered(self, path: str, code: int) -> None:
        """Record an answer of the health server with its HTTP status; called in the thread of the request."""

    def listeners_changed(self, family: Family, change: int) -> None:
        """Record a change of the number of localhost node ports that are served; called in the relay's thread."""

    def listening_failed(self, family: Family) -> None:
        """Record that the relay could not listen on a localhost node port; called in the relay's thread."""

    def cleaned_flows(self, family: Family, count: int, seconds: float) -> None:
        """Record a walk through conntrack: the number of deleted entries, and the duration."""
