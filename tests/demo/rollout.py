"""A rollout under load: the pods of a Service are replaced one by one, and no request fails.

Law: a step is taken when clients of both nodes have shown that the one before has arrived there; a pod's grace period
would give it the time to.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack

from tests.lab import Connection, Host, Lab, Load, LoadReport, Ports, Probe, tcp, udp

from .check import Answers, Check, Result, Section, describe, spread
from .cluster import API_PORT, Cluster

EXAMPLE = "rolling-update.yaml"
CLUSTER_IP, NODE2 = "10.96.0.120", "172.18.0.12"
REPLACEMENTS = (("pod1-1", "pod1-2"), ("pod2-1", "pod2-2"))
"""Each old pod with the new one on the same node that takes its place."""

PATIENCE_SECONDS = 4.0
"""For each request: a busy machine is no failure. TCP sends a lost packet again within this time and UDP does not, so
only UDP shows that nothing is lost."""
REQUESTS = (
    ("client-pod", tcp(CLUSTER_IP, 80, timeout_seconds=PATIENCE_SECONDS)),
    ("client-pod", udp(CLUSTER_IP, 8125, timeout_seconds=PATIENCE_SECONDS)),
    ("outside2", tcp(NODE2, 30120, timeout_seconds=PATIENCE_SECONDS)),
    ("outside2", udp(NODE2, 30121, timeout_seconds=PATIENCE_SECONDS)),
)
"""What is sent all the time, and from where: through node1 and through node2."""
PER_SECOND = 60
ENOUGH_REQUESTS = 40
"""So many in a row that a pod did not get: it is out. With three pods chance alone does that once in 10^7."""
STEP_SECONDS = 10.0
POLL_SECONDS = 0.02

SECTION = Section(
    "Rolling update under load",
    EXAMPLE,
    "Pods are replaced one by one: the new one is ready, the old one terminates, then is gone.",
    (Check("client-pod", tcp(CLUSTER_IP, 80), spread("pod1-2", "pod2-2"), requests=100),),
)
"""Its checks are for the time after the rollout."""


class StalledError(Exception):
    """A step of the rollout does not arrive at a node."""


def roll_out(cluster: Cluster) -> Iterator[Result]:
    """Replace all pods while clients send requests, and tell what they met."""
    lab = cluster.lab
    stalled = ""
    with ExitStack() as stack:
        loads = [stack.enter_context(lab[client].load(probe, per_second=PER_SECOND)) for client, probe in REQUESTS]
        kept = stack.enter_context(_connect_to(REPLACEMENTS[0][0], lab.client_pod))
        rollout = _Rollout(cluster, loads, kept)
        try:
            rollout.run()
        except StalledError as error:
            stalled = str(error)
    yield from (_result(client, probe, load.report()) for (client, probe), load in zip(REQUESTS, loads, strict=True))
    yield rollout.result_of_kept_connection()
    if stalled:
        yield Result("", "", "each step gets to the nodes", stalled, passed=False)


class _Rollout:
    """The pods of the Service as its EndpointSlice tells of them, step by step."""

    def __init__(self, cluster: Cluster, loads: list[Load], kept: Connection) -> None:
        self._cluster = cluster
        self._loads = loads
        self._kept = kept
        self._kept_answers: Answers = Counter()

    def run(self) -> None:
        """Replace one pod after the other."""
        terminating = {old: False for old, _ in REPLACEMENTS}
        for old, new in REPLACEMENTS:
            terminating[new] = False
            self._publish(terminating)
            self._wait_until_used(new)
            terminating[old] = True
            self._publish(terminating)
            self._wait_until_unused(old)
            self._cluster.lab[old].stop_serving(Ports(tcp=(API_PORT,), udp=(API_PORT,)), keep_connections=True)
            del terminating[old]
            self._publish(terminating)
            self._wait_until_unused(old)

    def result_of_kept_connection(self) -> Result:
        """Tell what became of the connection that was open all the time."""
        old = REPLACEMENTS[0][0]
        passed = self._kept_answers.keys() == {old}
        return Result(
            "client-pod", f"open connection to {old}", f"{old} to its end", describe(self._kept_answers), passed
        )

    def _publish(self, terminating: dict[str, bool]) -> None:
        """Write the slice anew, and ask through the open connection."""
        endpoints = [_endpoint(self._cluster.lab, pod, terminating=ends) for pod, ends in terminating.items()]
        self._cluster.rewrite(EXAMPLE, "EndpointSlice", {"endpoints": endpoints})
        outcome = self._kept.ask()
        self._kept_answers[outcome.server or str(outcome)] += 1

    def _wait_until_used(self, pod: str) -> None:
        for load in self._loads:
            for report in _reports(load, f"{pod} gets no request"):
                if pod in report.replies:
                    break

    def _wait_until_unused(self, pod: str) -> None:
        # The loads run side by side: what counts for each begins now, not when its turn to be looked at comes.
        for load, now in [(load, load.report()) for load in self._loads]:
            _wait_for_requests_without(pod, load, now)


def _endpoint(lab: Lab, pod: str, *, terminating: bool) -> dict[str, object]:
    return {
        "addresses": [str(lab[pod].ipv4)],
        "nodeName": next(node.name for node in lab.nodes if lab[pod] in lab.pods_of(node)),
        "conditions": {"ready": not terminating, "serving": True, "terminating": terminating},
    }


def _wait_for_requests_without(pod: str, load: Load, since: LoadReport) -> None:
    for report in _reports(load, f"{pod} still gets requests"):
        if report.replies.get(pod) != since.replies.get(pod):
            since = report
        elif report.requests >= since.requests + ENOUGH_REQUESTS:
            break


def _reports(load: Load, stalled: str) -> Iterator[LoadReport]:
    """Give reports until the caller has seen enough; raise if that takes too long."""
    deadline = time.monotonic() + STEP_SECONDS
    while time.monotonic() < deadline:
        yield load.report()
        time.sleep(POLL_SECONDS)
    message = f"{stalled} after {STEP_SECONDS:.0f} s"
    raise StalledError(message)


def _connect_to(pod: str, client: Host) -> Connection:
    """Open connections through the Service until one is to this pod, and keep that one."""
    while True:
        connection = client.connect(REQUESTS[0][1])
        if connection.greeting.server == pod:
            return connection
        connection.close()


def _result(client: str, probe: Probe, report: LoadReport) -> Result:
    failures = Counter(str(failure.outcome) for failure in report.failures)
    answers = Counter(report.replies) + failures
    sent = f"{report.requests} x {probe.protocol.value} {probe.to}"
    return Result(client, sent, "no request fails", describe(answers), passed=not failures)
