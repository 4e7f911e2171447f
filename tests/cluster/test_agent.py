"""The installed pyproxy with a real API server: after any failure of either, the kernel gets the right rules.

These tests check rules, and whether rules are written, but send no packets.
"""

import os
import re
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import pytest

from tests.bench.kernel_watch import KernelWatch
from tests.packets.objects import endpoint_slice

from .agent import PYPROXY, Agent
from .api import JsonObject
from .controlplane import ControlPlane
from .kubeproxy import HOST_UNTOUCHED, Backend
from .namespace import command_inside
from .objects import NODE, Cluster
from .relay import LOOPBACK, Relay

BACKENDS: tuple[Backend, ...] = ("iptables-nft", "iptables-legacy")
FLAGS = ("--cluster-cidr=10.244.0.0/16", "--metrics-bind-address=", "-v=4")
ENDPOINTS = {"stays": {"10.244.0.1:8080"}, "goes": {"10.244.0.2:8080"}}
"""Endpoints of the Services that exist when an agent starts."""
PATIENCE_SECONDS = 60.0
RETURN_SECONDS = 120.0
"""Time for recovery after a long outage: the longest delay between two tries, and the time-outs of a try."""
_LOOK_SECONDS = 1.0
SERVICES = 1000
BUDGET_BYTES = 60_000_000
POD = """
mount -t tmpfs none /run
mkdir -p /run/secrets/kubernetes.io/serviceaccount
mount --bind "$1" /run/secrets/kubernetes.io/serviceaccount
shift
exec "$@"
"""
"""Runs a command with the files of its first argument as those of a pod's service account."""


class Running:
    """An agent behind a relay, in its own namespace, with its objects."""

    def __init__(self, control_plane: ControlPlane, cluster: Cluster, relay: Relay, namespace: str) -> None:
        self._control_plane = control_plane
        self._cluster = cluster
        self._relay = relay
        self._namespace = namespace
        self._at_exit = ExitStack()

    def __enter__(self) -> Self:
        """Create the Node and two Services, ``stays`` and ``goes``."""
        self.url = self._at_exit.enter_context(self._control_plane.exposed_in(self._namespace, self._relay))
        self._cluster.create_node()
        for name, address in (("stays", "10.244.0.1"), ("goes", "10.244.0.2")):
            self._cluster.create_service(name)
            self._cluster.create_slice(name, address)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the agent."""
        self._at_exit.close()

    def start(
        self,
        backend: Backend = "iptables-nft",
        *,
        kubeconfig: Path | None = None,
        environment: Mapping[str, str] | None = None,
        wrapper: Sequence[str] = (),
        **user: str,
    ) -> Agent:
        """Start the agent, and wait until both Services are in the kernel."""
        if kubeconfig is None:
            credentials = user or {"token": self._control_plane.static_token()}
            kubeconfig = self._control_plane.kubeconfig_for(credentials, self.url)
        agent = Agent(
            self._control_plane,
            self._namespace,
            node=NODE,
            backend=backend,
            flags=FLAGS,
            kubeconfig=kubeconfig,
            environment=environment,
            wrapper=wrapper,
        )
        self._at_exit.enter_context(agent)
        agent.wait_until(lambda: ENDPOINTS.items() <= agent.services().items(), "both Services in the kernel")
        return agent

    def change(self) -> None:
        """Delete a Service, create one, and change the endpoint of one."""
        self._cluster.delete_service("goes")
        self._cluster.set_endpoint("stays", "10.244.0.3")
        self._cluster.create_service("comes")
        self._cluster.create_slice("comes", "10.244.0.4")


def expect(agent: Agent, seconds: float = PATIENCE_SECONDS, **services: str) -> None:
    """Wait until the kernel has exactly these Services and endpoints."""
    wanted = {name: {f"{address}:8080"} for name, address in services.items()}
    agent.wait_until(lambda: agent.services() == wanted, f"in the kernel: {wanted}", seconds)


@pytest.fixture
def running(control_plane: ControlPlane, cluster: Cluster, relay: Relay, namespace: str) -> Iterator[Running]:
    """Provide a node for an agent."""
    with Running(control_plane, cluster, relay, namespace) as ready:
        yield ready


def test_restart_of_the_api_server(control_plane: ControlPlane, running: Running) -> None:
    """While the API server restarts, all rules stay; later changes arrive."""
    agent = running.start()
    control_plane.stop_apiserver()
    agent.wait_for_log("API server lost")
    rules = agent.services()
    control_plane.start_apiserver()
    running.change()

    assert ENDPOINTS == rules
    expect(agent, stays="10.244.0.3", comes="10.244.0.4")


def test_unreachable(running: Running, relay: Relay) -> None:
    """While the API server is unreachable, all rules stay; changes made meanwhile arrive afterwards."""
    agent = running.start()
    relay.refuse()
    running.change()
    agent.wait_for_log("API server lost")
    rules = agent.services()
    relay.resume()

    assert ENDPOINTS == rules
    expect(agent, stays="10.244.0.3", comes="10.244.0.4")
    agent.wait_for_log("API server is back")


def test_expired_versions(control_plane: ControlPlane, running: Running, relay: Relay) -> None:
    """After a compaction (410 Gone), a relist finds deleted objects."""
    agent = running.start()
    relay.refuse()
    running.change()
    control_plane.compact()
    relay.resume()

    expect(agent, stays="10.244.0.3", comes="10.244.0.4")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Provide the length of an outage: five minutes only with --long."""
    if "blackout_seconds" in metafunc.fixturenames:
        metafunc.parametrize("blackout_seconds", [300.0 if metafunc.config.getoption("--long") else 3.0])


def test_blackout(running: Running, relay: Relay, blackout_seconds: float) -> None:
    """A network that drops all packets, for any time, removes no rules."""
    agent = running.start()
    relay.hold()
    running.change()
    end = time.monotonic() + blackout_seconds
    while time.monotonic() < end:
        assert ENDPOINTS == agent.services()
        time.sleep(_LOOK_SECONDS)
    relay.resume()

    expect(agent, RETURN_SECONDS, stays="10.244.0.3", comes="10.244.0.4")


def test_killed_connections(running: Running, relay: Relay, cluster: Cluster) -> None:
    """Repeated connection resets neither delay nor lose changes."""
    agent = running.start()
    for number in range(5, 10):
        relay.drop()
        cluster.set_endpoint("stays", f"10.244.0.{number}")
        expect(agent, stays=f"10.244.0.{number}", goes="10.244.0.2")


def test_rotated_token(control_plane: ControlPlane, running: Running, relay: Relay, tmp_path: Path) -> None:
    """The token file is read for each connection, because an old token may be invalid."""
    token = tmp_path / "token"
    token.write_text(control_plane.create_token("first"))
    agent = running.start(tokenFile=str(token))
    token.write_text(control_plane.create_token("second"))
    control_plane.kubectl("delete", "serviceaccount", "first")
    relay.drop()
    running.change()

    expect(agent, stays="10.244.0.3", comes="10.244.0.4")
    control_plane.kubectl("delete", "serviceaccount", "second")


def test_change_while_it_is_stopped(running: Running) -> None:
    """Changes made while no agent runs are programmed at its start; stopping changes no rules."""
    agent = running.start()
    before = agent.rules()
    status = agent.stop()
    left = agent.rules()
    running.change()
    agent.start()

    assert 0 == status
    assert without_counters(before) == without_counters(left)
    expect(agent, stays="10.244.0.3", comes="10.244.0.4")


def test_change_while_it_sleeps(running: Running, relay: Relay) -> None:
    """After a suspend of the machine, the agent detects dead connections and catches up."""
    agent = running.start()
    agent.process.suspend()
    relay.drop()
    running.change()
    agent.process.resume()

    expect(agent, stays="10.244.0.3", comes="10.244.0.4")


@pytest.mark.parametrize("backend", BACKENDS)
def test_restart_on_an_unchanged_cluster(running: Running, namespace: str, backend: Backend) -> None:
    """A restart on an unchanged cluster writes nothing: the kernel counts no commit, and no table changes."""
    agent = running.start(backend)
    agent.wait_for_log("first sync done")  # in both families; the check of the Services covers only one
    agent.stop()
    agent.log.write_text("")
    before = agent.rules()
    with KernelWatch(namespace, backend) as watch:
        agent.start()
        agent.wait_for_log("first sync done")

        assert 0 == watch.changes
    assert without_counters(before) == without_counters(agent.rules())


def without_counters(rules: str) -> str:
    """Return rules without comment lines, which contain the time, and without counters of policies."""
    return re.sub(r"^#.*\n| \[\d+:\d+\]$", "", rules, flags=re.MULTILINE)


def test_in_cluster(control_plane: ControlPlane, running: Running, relay: Relay, tmp_path: Path) -> None:
    """In a pod no flags are needed: server, token and CA are those of the service account, and the token is rotated."""
    account = tmp_path / "serviceaccount"
    account.mkdir()
    (account / "token").write_text(control_plane.create_token("first"))
    (account / "ca.crt").write_bytes(control_plane.authority.certificate.read_bytes())
    port = running.url.rpartition(":")[2]
    agent = running.start(
        kubeconfig=Path(),
        environment={"KUBERNETES_SERVICE_HOST": LOOPBACK, "KUBERNETES_SERVICE_PORT": port},
        wrapper=("unshare", "--mount", "sh", "-euc", POD, "sh", str(account)),
    )
    (account / "token").write_text(control_plane.create_token("second"))
    control_plane.kubectl("delete", "serviceaccount", "first")
    relay.drop()
    running.change()

    expect(agent, stays="10.244.0.3", comes="10.244.0.4")
    control_plane.kubectl("delete", "serviceaccount", "second")


def test_invalid_object_among_valid_ones(running: Running, cluster: Cluster) -> None:
    """An object that current API servers would reject is logged with its field, and affects no other object."""
    agent = running.start()
    cluster.smuggle(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "bad", "namespace": "default", "uid": "6f1f5c5e-54de-4a56-8a9c-7e5f0d9cbb0c"},
            "spec": {
                "type": "ClusterIP",
                "clusterIP": "10.96.300.1",
                "clusterIPs": ["10.96.300.1"],
                "ports": [{"port": 70000, "protocol": "TCP", "targetPort": 8080}],
            },
        }
    )
    running.change()

    expect(agent, stays="10.244.0.3", comes="10.244.0.4")
    agent.wait_for_log("Service default/bad: spec.ports[0].port: 70000 is not between 1 and 65535")
    agent.wait_for_log("Service default/bad: spec.clusterIPs[0]: 10.96.300.1 is not a valid IP address")


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--kubeconfig=/nowhere", "kubeconfig /nowhere: No such file or directory"),
        ("--master=:6443", "--master: 'http://:6443' is not a valid URL such as https://10.0.0.1:6443"),
        ("--metrics-bind-address=", "neither --kubeconfig nor --master is given, and this is not a pod"),
    ],
)
def test_no_way_to_the_api_server(namespace: str, tmp_path: Path, flag: str, message: str) -> None:
    """Invalid settings of the API server give a one-line error and exit code 2, without a traceback."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KUBERNETES_")}
    command = [PYPROXY, "run", "--iptables-variant=nft", "--control-socket=", *FLAGS, *HOST_UNTOUCHED, flag]
    done = subprocess.run(
        command_inside(namespace, command),
        env=environment | {"XTABLES_LOCKFILE": str(tmp_path / "lock")},
        capture_output=True,
        text=True,
        check=False,
    )

    assert 2 == done.returncode
    assert done.stderr.splitlines()[-1].startswith(f"Error: {message}")
    assert "Traceback" not in done.stderr


def test_memory(running: Running, cluster: Cluster) -> None:
    """With 1,000 Services of three endpoints the peak memory of the agent stays below its budget."""
    cluster.smuggle(*(item for number in range(SERVICES) for item in numbered(number)))
    agent = running.start()
    agent.wait_until(lambda: len(agent.services()) == SERVICES + 2, f"{SERVICES} Services in the kernel")

    assert agent.process.peak_bytes() < BUDGET_BYTES


def numbered(number: int) -> list[JsonObject]:
    """Return a Service and its slice, as the API server stores them."""
    name, (high, low) = f"web-{number}", divmod(number, 250)
    service = {
        "type": "ClusterIP",
        "clusterIP": f"10.96.{100 + high}.{low}",
        "ports": [{"port": 80, "protocol": "TCP"}],
    }
    metadata = {"namespace": "default", "uid": str(uuid.UUID(int=number))}
    ports: list[JsonObject] = [{"port": 8080, "protocol": "TCP"}]
    stored = endpoint_slice(name, "IPv4", [f"10.{20 + which}.{high}.{low}" for which in range(3)], ports)
    return [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata | {"name": name},
            "spec": service | {"clusterIPs": [service["clusterIP"]], "ipFamilies": ["IPv4"]},
        },
        stored | {"metadata": stored["metadata"] | metadata},
    ]
