"""What agents cost the API server per change: ten of one program at once, because one agent alone costs less than the noise.

Each agent is a node in a network namespace of its own. The same changes without any agent come first, and are subtracted:
most of the CPU time of the API server is for the changes themselves.
"""

import time
from contextlib import ExitStack

from tests.cluster.kubeproxy import Backend
from tests.cluster.namespace import fresh_namespace

from .cluster import Cluster
from .kernel_watch import watch
from .results import Program, Values
from .run import CHURN_CHANGES, CHURN_PER_SECOND, received_bytes, settle, start_program
from .writer import Writer

AGENTS = 10


def measure_fleet(
    cluster: Cluster, program: Program, backend: Backend, idle_rate: float, limit_seconds: float
) -> Values:
    """Return CPU time and bytes of the API server, for each agent and change."""
    alone = _churn(cluster, idle_rate)
    with ExitStack() as stack:
        nodes = []
        for _ in range(AGENTS):
            namespace = stack.enter_context(fresh_namespace())
            seen = stack.enter_context(watch(namespace, backend))
            process, device = start_program(program, cluster, namespace, backend, stack)
            seen.programmed(cluster.endpoints(), limit_seconds)
            nodes.append((process, namespace, device))
        for process, _, _ in nodes:
            settle(process)
        before = [received_bytes(namespace, device) for _, namespace, device in nodes]
        together = _churn(cluster, idle_rate)
        for process, _, _ in nodes:
            settle(process)
        received = sum(received_bytes(namespace, device) for _, namespace, device in nodes) - sum(before)
    return {
        "fleet api cpu": [(together - alone) / AGENTS],
        "fleet api bytes": [received / AGENTS / CHURN_CHANGES],
    }


def _churn(cluster: Cluster, idle_rate: float) -> float:
    control_plane = cluster.control_plane
    before, began = control_plane.cpu_seconds(), time.monotonic()
    with Writer(control_plane, cluster.churn(CHURN_CHANGES), CHURN_PER_SECOND) as writer:
        writer.last_confirmed()
    used = control_plane.cpu_seconds() - before
    return (used - idle_rate * (time.monotonic() - began)) / CHURN_CHANGES
