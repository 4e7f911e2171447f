"""Latency of new connections with few and many Services, and of traffic that is for no Service.

For each program, one node has the rules of few Services and another one those of many; the programs are stopped, because
their rules stay. A client in a namespace of its own connects over a veth pair, in rounds that visit all nodes, so that all
of them see the same machine. The endpoints are addresses of the node. Each connection is timed from `connect` to the
answer, and only its first packet passes the rules of Services.
"""

import itertools
import os
import random
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial

from tests.cluster.kubeproxy import Backend
from tests.cluster.namespace import call_inside, fresh_namespace

from .cluster import ENDPOINT_NETWORKS, PORT, Cluster, service_ip
from .kernel_watch import NotProgrammedError, watch
from .results import Program, Record, percentile
from .run import start_program

_CONNECTIONS = 500
"""In a round, of each kind on each node."""
_TARGETS = 50
"""Services, spread evenly over all: in kube-proxy's iptables mode the first one is found sooner than the last one."""
_RESET_AT_CLOSE = b"\1\0\0\0\0\0\0\0"


@dataclass(slots=True)
class Node:
    """A node with rules, and a client connected to it."""

    record: Record
    client: str
    listener: socket.socket
    services: Sequence[tuple[str, int]]
    pods: Sequence[tuple[str, int]]


def measure_first_packets(  # noqa: PLR0913  # what is measured, and how often
    clusters: Sequence[Cluster],
    backend: Backend,
    programs: Sequence[Program],
    *,
    rounds: int,
    limit_seconds: float,
    report: Callable[[str], None],
) -> list[Record]:
    """Return a record for each program and cluster; each value is a percentile of one round."""
    records, nodes = [], []
    with ExitStack() as stack:
        for program, cluster in itertools.product(programs, clusters):
            report(f"{program}, {cluster.shape.services} Services")
            record = Record(str(cluster.shape), backend, program, {}, "", limit_seconds, os.getloadavg()[0])
            try:
                nodes.append(_node(cluster, backend, record, stack))
                records.append(record)
            except NotProgrammedError:
                records.append(replace(record, not_done="rules for new connections"))
        for number in range(rounds):
            report(f"round {number + 1} of {rounds}")
            for node in random.sample(nodes, len(nodes)):
                for name, targets in (("first packet", node.services), ("pod", node.pods)):
                    times = call_inside(node.client, partial(_connect, node, targets))
                    for percent in (50, 99):
                        node.record.values.setdefault(f"{name} p{percent}", []).append(percentile(times, percent))
    return records


def _node(cluster: Cluster, backend: Backend, record: Record, stack: ExitStack) -> Node:
    namespace = stack.enter_context(fresh_namespace())
    with ExitStack() as while_it_runs:
        seen = while_it_runs.enter_context(watch(namespace, backend))
        start_program(record.program, cluster, namespace, backend, while_it_runs)
        seen.programmed(cluster.endpoints(), record.limit)
    client = stack.enter_context(fresh_namespace())
    for command in (
        f"link add eth0 netns {client} type veth peer name pod netns {namespace}",
        f"-netns {namespace} address add 10.244.0.1/24 dev pod",
        f"-netns {namespace} link set pod up",
        *(f"-netns {namespace} route add local {network} dev lo" for network in ENDPOINT_NETWORKS),
        f"-netns {client} address add 10.244.0.5/24 dev eth0",
        f"-netns {client} link set eth0 up",
        f"-netns {client} route add default via 10.244.0.1",
    ):
        subprocess.run(["ip", *command.split()], check=True)
    listener = stack.enter_context(closing(call_inside(namespace, socket.socket)))
    listener.bind(("0.0.0.0", PORT))  # noqa: S104  # in a namespace without other nodes
    listener.listen()
    step = max(1, cluster.shape.services // _TARGETS)
    numbers = range(0, cluster.shape.services, step)
    pods = [(ip, PORT) for number in numbers for ip in cluster.endpoints([number])]
    return Node(record, client, listener, [(service_ip(number), 80) for number in numbers], pods)


def _connect(node: Node, targets: Sequence[tuple[str, int]]) -> list[float]:
    times = []
    for target in itertools.islice(itertools.cycle(targets), _CONNECTIONS):
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)  # so no port is in TIME_WAIT
            began = time.perf_counter()
            client.connect(target)
            times.append(time.perf_counter() - began)
            node.listener.accept()[0].close()
    return times
