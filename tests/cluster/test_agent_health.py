"""The health of the installed pyproxy during outages of the API server, and with an incomplete Node."""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

import pytest

from .agent import Agent
from .api import JsonObject
from .controlplane import ControlPlane
from .http_get import get_inside
from .namespace import call_inside
from .objects import NODE, SERVICES, SLICES, Cluster
from .relay import LOOPBACK, Relay

FLAGS = ("--cluster-cidr=10.244.0.0/16", "--metrics-bind-address=", "--iptables-sync-period=1s")
HEALTH_TIMEOUT_SECONDS = 2.0
"""Two sync periods."""
HEALTH_PORT = 10256
CHECK_PORT = 32022
OTHER_CHECK_PORT = 32023
EVENTS = "/apis/events.k8s.io/v1/namespaces/default/events"
_LOOK_SECONDS = 0.2


@pytest.fixture
def agent(control_plane: ControlPlane, cluster: Cluster, relay: Relay, namespace: str) -> Iterator[Agent]:
    """Provide an agent behind a relay, not yet started, and a Service with a health check node port."""
    with ExitStack() as stack:
        url = stack.enter_context(control_plane.exposed_in(namespace, relay))
        balanced = {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": CHECK_PORT}
        cluster.create_service("balanced", **balanced)
        cluster.create_slice("balanced", "10.244.0.1")
        endpoints = [{"addresses": ["10.244.0.1"], "nodeName": NODE}]
        control_plane.request("PATCH", f"{SLICES}/balanced-1", {"endpoints": endpoints})
        kubeconfig = control_plane.kubeconfig_for({"token": control_plane.static_token()}, url)
        yield stack.enter_context(
            Agent(control_plane, namespace, node=NODE, backend="iptables-nft", flags=FLAGS, kubeconfig=kubeconfig)
        )


def ask(namespace: str, path: str, port: int = HEALTH_PORT) -> tuple[int, str]:
    """Send a request to the agent of a namespace, on its loopback; status 0 if nothing listens."""
    answer = get_inside(namespace, LOOPBACK, port, path)
    return (answer.status, answer.body) if answer else (0, "")


def answers(namespace: str, path: str, port: int, status: int) -> bool:
    """Return whether the agent of a namespace answers with this status."""
    return ask(namespace, path, port)[0] == status


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Provide the length of an outage: one minute only with --long."""
    if "outage_seconds" in metafunc.fixturenames:
        is_long = metafunc.config.getoption("--long")
        metafunc.parametrize("outage_seconds", [60.0 if is_long else 3 * HEALTH_TIMEOUT_SECONDS])


def test_lost_api_server(cluster: Cluster, agent: Agent, relay: Relay, namespace: str, outage_seconds: float) -> None:
    """During an outage of the API server no endpoint turns to 503, well beyond the limit for pending work."""
    cluster.create_node()
    places = (("/healthz", HEALTH_PORT), ("/livez", HEALTH_PORT), ("/readyz", HEALTH_PORT), ("/", CHECK_PORT))
    for path, port in places:
        agent.wait_until(partial(answers, namespace, path, port, 200), f"{path} on {port}")
    relay.refuse()
    agent.wait_for_log("API server lost")
    end = time.monotonic() + outage_seconds
    while time.monotonic() < end:
        assert [200] * 4 == [ask(namespace, path, port)[0] for path, port in places]
        time.sleep(_LOOK_SECONDS)
    lost = json.loads(ask(namespace, "/readyz")[1])["watchesLostSeconds"]
    relay.resume()

    assert lost > outage_seconds - HEALTH_TIMEOUT_SECONDS

    def is_back() -> bool:
        return 0 == int(json.loads(ask(namespace, "/readyz")[1])["watchesLostSeconds"])

    agent.wait_until(is_back, "watches")


def test_check_whose_port_is_taken(control_plane: ControlPlane, cluster: Cluster, agent: Agent, namespace: str) -> None:
    """A health check node port in use causes an Event of its Service, and is served once it is free."""
    cluster.create_node()
    reason = "FailedToStartServiceHealthcheck"

    def event() -> JsonObject | None:
        found = control_plane.request("GET", EVENTS)["items"]
        return next((item for item in found if item["reason"] == reason), None)

    with call_inside(namespace, partial(socket.create_server, ("", OTHER_CHECK_PORT))):
        control_plane.request(
            "PATCH", f"{SERVICES}/balanced", {"spec": {"type": "ClusterIP", "externalTrafficPolicy": None}}
        )
        balanced = {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": OTHER_CHECK_PORT}
        control_plane.request("PATCH", f"{SERVICES}/balanced", {"spec": balanced})
        agent.wait_until(lambda: event() is not None, f"an Event with reason {reason}")
    agent.wait_until(partial(answers, namespace, "/", OTHER_CHECK_PORT, 200), "an answer on the port")
    created = event()
    control_plane.kubectl("delete", "events", "--all", "--wait=false")

    assert created is not None
    assert ("Warning", "Listen", "balanced") == (created["type"], created["action"], created["regarding"]["name"])
    assert f":{OTHER_CHECK_PORT}" in created["note"]


def test_node_without_an_address(cluster: Cluster, agent: Agent, namespace: str) -> None:
    """Rules wait for an address of the Node, without a substitute; until then the node is not eligible."""
    agent.wait_for_log(f"node {NODE}: there is no such Node object")
    before = agent.services()
    healthz = ask(namespace, "/healthz")
    cluster.create_node()
    agent.wait_until(lambda: "balanced" in agent.services(), "the Service in the kernel")
    agent.wait_until(partial(answers, namespace, "/healthz", HEALTH_PORT, 200), "an eligible node")

    assert {} == before
    assert (503, False, True) == (
        healthz[0],
        json.loads(healthz[1])["nodeEligible"],
        json.loads(healthz[1])["healthy"],
    )
    assert f"node {NODE}: addresses 192.0.2.11, podCIDRs 10.244.0.0/24, zone a" in agent.log.read_text()
