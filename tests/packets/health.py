"""Health checks from outside the cluster: the health of nodes, and the local endpoints of a Service."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from tests.cluster.http_get import get_inside
from tests.lab.waiting import wait_until

from .cluster import Cluster
from .objects import PLAN, JsonObject, ingress, port, service

HEALTH_PORT = 10256
CHECK_PORT = 32020


class Answer(NamedTuple):
    """The answer of a node."""

    status: int
    weight: str | None
    body: dict[str, Any]


def balanced(check_port: int = CHECK_PORT) -> JsonObject:
    """Return a Service with a load balancer and a health check node port."""
    return service(
        "balanced",
        74,
        port(80),
        ingress=ingress(74),
        type="LoadBalancer",
        externalTrafficPolicy="Local",
        healthCheckNodePort=check_port,
    )


def ask(cluster: Cluster, host: str, number: int, path: str = "/", version: int = 4) -> Answer | None:
    """Send a request to a port of a node from outside the cluster; None if nothing listens there."""
    address = str(cluster.lab[host].address(version))
    found = get_inside(cluster.lab["outside1"].namespace.name, address, number, path)
    if found is None:
        return None
    return Answer(found.status, found.headers.get("X-Load-Balancing-Endpoint-Weight"), json.loads(found.body))


def status(cluster: Cluster, host: str, path: str, version: int = 4) -> int:
    """Return the status code of a path of the health server."""
    answer = ask(cluster, host, HEALTH_PORT, path, version)
    assert answer is not None
    return answer.status


def reported(cluster: Cluster, number: int = CHECK_PORT, version: int = 4) -> list[tuple[int, int] | None]:
    """Return what each node reports to load balancers: the status, and the number of endpoints."""
    answers = [ask(cluster, planned.name, number, version=version) for planned in PLAN.nodes]
    return [(answer.status, answer.body["localEndpoints"]) if answer else None for answer in answers]


def wait_until_reported(
    cluster: Cluster, *expected: tuple[int, int] | None, number: int = CHECK_PORT, version: int = 4
) -> None:
    """Wait until the nodes report this; the servers are updated after the rules."""
    wait_until(lambda: reported(cluster, number, version) == list(expected), f"{expected} on port {number}")
