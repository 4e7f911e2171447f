"""Events in a real API server with RBAC: with the permissions of manifests/base, and without permission for Events."""

import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import pytest

from tests.lab.waiting import wait_until
from tests.packets.gate import SYNC_PERIOD_FLAG, Gate
from tests.packets.modes import MODES

from .agent import Agent
from .api import JsonObject
from .controlplane import ControlPlane
from .objects import NODE, SERVICES, Cluster
from .relay import Relay

MANIFESTS = Path(__file__).parents[2] / "manifests" / "base"
EVENTS = "/apis/events.k8s.io/v1/namespaces/default/events"
PATIENCE_SECONDS = 60.0
[GATED] = [mode for mode in MODES if mode.name == "iptables-nft"]
FLAGS = ("--cluster-cidr=10.244.0.0/16", "--metrics-bind-address=", "--healthz-bind-address=", SYNC_PERIOD_FLAG)


@pytest.fixture(scope="module")
def guarded(peers: None) -> Iterator[ControlPlane]:  # noqa: ARG001 - fails without the programs
    """Provide a control plane with RBAC and the roles of the manifests."""
    with ControlPlane(authorization="RBAC") as started:
        for name in ("serviceaccount.yaml", "rbac.yaml"):
            started.kubectl("apply", "--namespace=kube-system", f"--filename={MANIFESTS / name}")
        yield started


class Watched:
    """An agent behind a gate, with one Service, and its Events in the API server."""

    def __init__(self, control_plane: ControlPlane, namespace: str, relay: Relay, folder: Path) -> None:
        self._control_plane = control_plane
        self._namespace = namespace
        self.relay = relay
        self._at_exit = ExitStack()
        self.gate = Gate(GATED, folder)

    def __enter__(self) -> Self:
        """Create the Node and the Service."""
        cluster = Cluster(self._control_plane, self._at_exit)
        cluster.create_node()
        cluster.create_service("web")
        cluster.create_slice("web", "10.244.0.7")
        self._server = self._at_exit.enter_context(self._control_plane.exposed_in(self._namespace, self.relay))
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the agent, and delete the objects."""
        self._at_exit.close()
        self._control_plane.kubectl("delete", "events", "--all", "--wait=false")

    def start(self, token: str) -> Agent:
        """Start the agent with a token."""
        agent = Agent(
            self._control_plane,
            self._namespace,
            node=NODE,
            backend="iptables-nft",
            flags=FLAGS,
            kubeconfig=self._control_plane.kubeconfig_for({"token": token}, self._server),
            environment=self.gate.env,
            names_mode=False,
        )
        self._at_exit.enter_context(agent)
        agent.wait_for_log("first sync done")
        return agent

    def refuse_web(self) -> None:
        """Make the gate refuse the cluster IP of the Service, and change the Service."""
        self.gate.refuse(f"-d {self.web()['spec']['clusterIP']}/32")
        self._control_plane.request("PATCH", f"{SERVICES}/web", {"spec": {"ports": [{"port": 81}]}})

    def web(self) -> JsonObject:
        """Return the Service."""
        return self._control_plane.request("GET", f"{SERVICES}/web")

    def event(self, reason: str) -> JsonObject:
        """Wait for the only Event with a reason."""
        wait_until(lambda: bool(self.events(reason)), f"an Event {reason}", timeout_seconds=PATIENCE_SECONDS)
        [found] = self.events(reason)
        return found

    def events(self, reason: str) -> list[JsonObject]:
        """Return the Events with a reason."""
        items: list[JsonObject] = self._control_plane.request("GET", EVENTS)["items"]
        return [item for item in items if item["reason"] == reason]

    def described(self, kind: str, name: str) -> str:
        """Return the output of kubectl describe for an object."""
        return self._control_plane.kubectl("describe", kind, name)


@pytest.fixture
def watched(guarded: ControlPlane, namespace: str, tmp_path: Path) -> Iterator[Watched]:
    """Provide the environment of an agent."""
    with Watched(guarded, namespace, guarded.new_relay(), tmp_path) as made:
        yield made


def parts(event: JsonObject, *names: str) -> tuple[Any, ...]:
    """Return some fields of an Event."""
    return tuple(event.get(name) for name in names)


def test_events_with_the_permissions_of_the_manifests(guarded: ControlPlane, watched: Watched) -> None:
    """The Node gets an Event of the start, the Service one of its refusal and one of its end, as shown by kubectl."""
    agent = watched.start(guarded.create_token("kube-proxy", "kube-system"))
    started = watched.event("Starting")
    defaulted = watched.event("KubeProxyDefaultMode")
    watched.refuse_web()
    refused = watched.event("RulesRefused")
    agent.wait_until(lambda: watched.gate.count > 5, "more tries")
    watched.gate.admit_all()
    accepted = watched.event("RulesAccepted")

    node = {"apiVersion": "v1", "kind": "Node", "name": NODE, "uid": NODE}
    service = {"apiVersion": "v1", "kind": "Service", "name": "web", "namespace": "default"}
    service["uid"] = watched.web()["metadata"]["uid"]
    fields = ("regarding", "type", "action", "reportingController", "reportingInstance")
    ours = ("pyproxy", f"pyproxy-{NODE}")
    assert (node, "Normal", "StartPyproxy", *ours) == parts(started, *fields)
    assert (node, "Warning", "StartPyproxy", *ours) == parts(defaulted, *fields)
    assert "From Kubernetes 1.40 on the default is nftables" in defaulted["note"]
    assert (service, "Warning", "ProgramRules", *ours) == parts(refused, *fields)
    assert (service, "Normal", "ProgramRules", *ours) == parts(accepted, *fields)
    assert "default/web: refused by the kernel" in refused["note"]
    assert 1 == len(watched.events("RulesRefused"))
    assert re.search(r"Normal +Starting .* pyproxy", watched.described("node", NODE))
    assert re.search(r"Warning +RulesRefused .* pyproxy", watched.described("service", "web"))


def test_events_during_an_outage_of_the_api_server(guarded: ControlPlane, watched: Watched) -> None:
    """An Event is sent after an outage of the API server, and affects nothing meanwhile."""
    agent = watched.start(guarded.create_token("kube-proxy", "kube-system"))
    watched.event("Starting")
    # The change has to arrive before the outage, and its refusal has to come during it.
    watched.gate.be_busy()
    tries = watched.gate.count
    watched.refuse_web()
    agent.wait_until(lambda: watched.gate.count > tries, "the change")
    watched.relay.refuse()
    agent.wait_for_log("API server lost")
    watched.gate.be_free()
    agent.wait_for_log("in quarantine")
    watched.relay.resume()

    assert "Warning" == watched.event("RulesRefused")["type"]


def test_without_permission_to_create_events(guarded: ControlPlane, watched: Watched) -> None:
    """Read permissions suffice; refused Events cause a single warning."""
    name = "pyproxy-without-events"
    guarded.kubectl("create", "clusterrole", name, "--verb=list,watch", "--resource=services,nodes,endpointslices")
    token = guarded.create_token("reader", "kube-system")
    guarded.kubectl(
        "create", "clusterrolebinding", name, f"--clusterrole={name}", "--serviceaccount=kube-system:reader"
    )
    agent = watched.start(token)
    watched.refuse_web()
    agent.wait_for_log("in quarantine")
    watched.gate.admit_all()
    agent.wait_for_log("out of quarantine")

    agent.wait_for_log("an Event was refused")
    assert 1 == agent.log.read_text().count("an Event was refused")
    assert [] == watched.events("RulesRefused")
