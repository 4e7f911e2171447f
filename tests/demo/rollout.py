"""A rollout under load: the pods of a Service are replaced one by one, and no request fails.

A step is made when the clients of both nodes have observed the previous one. In a real cluster the grace period of a
pod allows for this time.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Self

from tests.lab import Connection, Host, Lab, Load, LoadReport, Ports, Probe, tcp

from .check import Answers, Check, Result, Section, describe, spread
from .cluster import API_PORT, Cluster

EXAMPLE = "rolling-update.yaml"
REPLACEMENTS = (("pod1-1", "pod1-2"), ("pod2-1", "pod2-2"))
"""Each old pod with the new pod on the same node that replaces it."""

PATIENCE_SECONDS = 4.0
"""Time-out of requests. A slow answer of a busy machine is not a failure; the kernel's counters show lost packets."""
CLUSTER_IP = tcp("10.96.0.120", 80, timeout_seconds=PATIENCE_SECONDS)
NODE_PORT = tcp("172.18.0.12", 30120, timeout_seconds=PATIENCE_SECONDS)
PER_SECOND = 100
ENOUGH_REQUESTS = 40
"""Consecutive requests without one to a pod: it is no longer used. With three pods, chance does this once in 10^7."""
STEP_SECONDS = 10.0
POLL_SECONDS = 0.02

SECTION = Section(
    "Rolling update under load",
    EXAMPLE,
    "Pods are replaced one by one: the new one is ready, the old one terminates, then is gone.",
    (Check("client-pod", CLUSTER_IP, spread("pod1-2", "pod2-2"), requests=100),),
)
"""The section of the rollout; its checks are made afterwards."""


class StalledError(Exception):
    """A step of the rollout did not take effect on a node."""


def roll_out(cluster: Cluster) -> Iterator[Result]:
    """Replace all pods while clients of both nodes send requests, and yield the results."""
    stalled = ""
    with ExitStack() as stack:
        streams = [
            stack.enter_context(_Stream(cluster.lab.client_pod, CLUSTER_IP)),
            stack.enter_context(_Stream(cluster.lab["outside2"], NODE_PORT)),
        ]
        kept = stack.enter_context(_connect_to(REPLACEMENTS[0][0], cluster.lab.client_pod))
        rollout = _Rollout(cluster, [stream.load for stream in streams], kept)
        try:
            rollout.run()
        except StalledError as error:
            stalled = str(error)
    yield from (stream.result() for stream in streams)
    yield rollout.result_of_kept_connection()
    if stalled:
        yield Result("", "", "each step takes effect", stalled, passed=False)


class _Stream:
    """A continuous stream of requests of one client."""

    def __init__(self, client: Host, probe: Probe) -> None:
        self._client = client
        self._probe = probe
        self._repeated_before = _repeated_first_packets(client)
        self.load = client.load(probe, per_second=PER_SECOND)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.load.stop()

    def result(self) -> Result:
        """Return the results of the requests; a retransmitted first packet also counts as a failure."""
        report = self.load.report()
        failures = Counter(str(failure.outcome) for failure in report.failures)
        failures["first packet lost"] = _repeated_first_packets(self._client) - self._repeated_before
        sent = f"{report.requests} x {self._probe.protocol.value} {self._probe.to}"
        answers = Counter(report.replies) + failures
        return Result(self._client.name, sent, "no failure, nothing lost", describe(answers), not failures.total())


class _Rollout:
    """The pods of the Service in its EndpointSlice, changed step by step."""

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
            self._cluster.lab[old].stop_serving(Ports(tcp=(API_PORT,)), keep_connections=True)
            del terminating[old]
            self._publish(terminating)
            self._wait_until_unused(old)

    def result_of_kept_connection(self) -> Result:
        """Return the result of the connection that was open all the time."""
        old = REPLACEMENTS[0][0]
        answers = self._kept_answers
        return Result(
            "client-pod", f"open connection to {old}", f"{old} to its end", describe(answers), answers.keys() == {old}
        )

    def _publish(self, terminating: dict[str, bool]) -> None:
        """Rewrite the slice, and send a question through the open connection."""
        endpoints = [_endpoint(self._cluster.lab, pod, terminating=ends) for pod, ends in terminating.items()]
        self._cluster.rewrite(EXAMPLE, "EndpointSlice", {"endpoints": endpoints})
        outcome = self._kept.ask()
        self._kept_answers[outcome.server or str(outcome)] += 1

    def _wait_until_used(self, pod: str) -> None:
        for reports in self._reports(f"{pod} does not get requests of both clients"):
            if all(pod in report.replies for report in reports):
                break

    def _wait_until_unused(self, pod: str) -> None:
        since = [load.report() for load in self._loads]
        for reports in self._reports(f"{pod} still gets requests"):
            for index, report in enumerate(reports):
                if report.replies.get(pod) != since[index].replies.get(pod):
                    since[index] = report
            if all(now.requests >= then.requests + ENOUGH_REQUESTS for now, then in zip(reports, since, strict=True)):
                break

    def _reports(self, stalled: str) -> Iterator[list[LoadReport]]:
        """Yield the reports of the loads until the caller stops; raises StalledError after too long a time."""
        deadline = time.monotonic() + STEP_SECONDS
        while time.monotonic() < deadline:
            yield [load.report() for load in self._loads]
            time.sleep(POLL_SECONDS)
        message = f"{stalled} after {STEP_SECONDS:.0f} s"
        raise StalledError(message)


def _endpoint(lab: Lab, pod: str, *, terminating: bool) -> dict[str, object]:
    return {
        "addresses": [str(lab[pod].ipv4)],
        "nodeName": next(node.name for node in lab.nodes if lab[pod] in lab.pods_of(node)),
        "conditions": {"ready": not terminating, "serving": True, "terminating": terminating},
    }


def _connect_to(pod: str, client: Host) -> Connection:
    """Open connections through the Service until one reaches this pod, and keep that one."""
    while True:
        connection = client.connect(CLUSTER_IP)
        if connection.greeting.server == pod:
            return connection
        connection.close()


def _repeated_first_packets(host: Host) -> int:
    """Return how many SYNs the kernel of the host has retransmitted, each after a second without an answer."""
    lines = [line.split() for line in host.run("cat", "/proc/net/netstat").splitlines()]
    names, values = [words for words in lines if words[0] == "TcpExt:"]
    return int(values[names.index("TCPSynRetrans")])
