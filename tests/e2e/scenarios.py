"""Changes to the proxy of a cluster under traffic: no held connection may break, and no new one may fail.

Each scenario is one change that an operator makes, or one failure. They run in order: each starts from the state that the one
before has left.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.cluster.process import ClusterError
from tests.lab.waiting import wait_until

from .cluster import Cluster
from .images import PREVIOUS_TAG, PYPROXY
from .proxies import DAEMON_SET, OVERLAYS, Proxy, Rollouts, derived
from .traffic import Count, Traffic

_MANIFEST = Path(__file__).parent / "manifests" / "web.yaml"
_SETTLE_SECONDS = 3.0
"""Time before and after a change, in which failures would show, too."""
_RESTART_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Scenario:
    """A change under traffic."""

    name: str
    change: Callable[["World"], object]
    held: tuple[str, ...] = ("web", "steady")
    """Services with connections that must not break; `web` has an endpoint on each node."""
    prepare: Callable[["World"], object] = lambda _: None
    """Called before there is traffic."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the connections of one scenario have seen."""

    name: str
    seconds: float
    counts: tuple[Count, ...]
    error: str = ""
    """Why the change itself failed."""

    @property
    def failures(self) -> list[str]:
        """Return a line for each failed connection or request, and for a failed change."""
        lost = [
            f"{count.kind} connection to {count.address}: {line}" for count in self.counts for line in count.failures
        ]
        return [*([self.error] if self.error else []), *lost]

    def __str__(self) -> str:
        """Return one line with the numbers."""
        held, new = (sum(count.requests for count in self.counts if count.kind == kind) for kind in ("held", "new"))
        slow = sum(count.slow for count in self.counts)
        return f"{self.name}: {held} requests on held connections, {new} new connections, {slow} slow, {len(self.failures)} failed, {self.seconds:.0f} s"


class World:
    """The cluster with its Services and clients."""

    def __init__(self, cluster: Cluster, agnhost: str) -> None:
        """Create the Services of the scenarios; `agnhost` is the image of their pods."""
        self.cluster, self.rollouts = cluster, Rollouts(cluster)
        self._kubectl = cluster.control_plane.kubectl
        self._kubectl("apply", "--filename=-", stdin=_MANIFEST.read_text().replace("@AGNHOST@", agnhost))
        for name in ("deployment/web", "deployment/steady"):
            self._kubectl("rollout", "status", name, "--timeout=180s")
        self._kubectl("wait", "--for=condition=Ready", "pod/client", "--timeout=60s")

    @contextmanager
    def traffic(self, held: tuple[str, ...]) -> Iterator[list[Traffic]]:
        """Send requests from outside, to node ports of two nodes, and from a pod, to cluster IPs."""
        inside: list[tuple[str, str]] = []
        outside: list[tuple[str, str]] = []
        for name in ("web", "steady"):
            spec = self.cluster.control_plane.get("service", name)["spec"]
            [port] = spec["ports"]
            addresses = [address for node in self.cluster.nodes[:2] for address in node.network.addresses]
            for kind in ("held", "new") if name in held else ("new",):
                inside += [(kind, f"{_in_url(address)}:{port['port']}") for address in spec["clusterIPs"]]
                outside += [(kind, f"{_in_url(address)}:{port['nodePort']}") for address in addresses]
        with ExitStack() as stack:
            yield [
                stack.enter_context(Traffic(self.cluster.control_plane.command("env"), outside)),
                stack.enter_context(Traffic(self._in_client_pod(), inside)),
            ]

    def _in_client_pod(self) -> list[str]:
        """Return the begin of a command line in the network namespace of the client pod; the files are the machine's."""
        status = self.cluster.control_plane.get("pod", "client")["status"]["containerStatuses"][0]
        container = status["containerID"].removeprefix("containerd://")
        node = self.cluster.nodes[0]
        tasks = node.run("ctr", "--address=/run/containerd/containerd.sock", "--namespace=k8s.io", "task", "list")
        [pid] = [words[1] for words in map(str.split, tasks.splitlines()) if words[0] == container]
        return node.command("nsenter", f"--target={pid}", "--net", "--")

    def run(self, scenario: Scenario) -> Outcome:
        """Make the change of a scenario under traffic."""
        error = ""
        scenario.prepare(self)
        with self.traffic(scenario.held) as clients:
            time.sleep(_SETTLE_SECONDS)
            started = time.monotonic()
            try:
                scenario.change(self)
            except (ClusterError, TimeoutError) as failed:
                error = str(failed)
            seconds = time.monotonic() - started
            time.sleep(_SETTLE_SECONDS)
            counts = tuple(count for client in clients for count in client.end())
        return Outcome(scenario.name, seconds, counts, error)

    def revision_of(self, image: str) -> str:
        """Return the revision of the DaemonSet whose proxy has an image, as docs/install.md finds it."""
        columns = "REVISION:.revision,IMAGE:.data.spec.template.spec.containers[0].image"
        text = self._kubectl(
            *("--namespace=kube-system", "get", "controllerrevisions", "--selector=k8s-app=kube-proxy"),
            *("--sort-by=.revision", f"--output=custom-columns={columns}"),
        )
        return [words[0] for words in map(str.split, text.splitlines()) if words[1].startswith(image)][-1]

    def kill_all_agents(self) -> None:
        """Send SIGKILL to the agents of all nodes at once, and wait until the kubelets have started them again."""
        before = self._agents()
        # The PID namespace of a node has only its own processes, and each agent is in a network namespace of its node.
        for node in self.cluster.nodes:
            pids = node.run("pgrep", "--full", "python3 .*/usr/local/bin/kube-proxy ").split()
            node.run("kill", "-KILL", *pids)
        wait_until(
            lambda: not before & self._agents() and len(before) == len(self._agents()),
            "restart of all agents",
            timeout_seconds=_RESTART_SECONDS,
            poll_seconds=0.5,
        )
        self.rollouts.wait()

    def _agents(self) -> set[str]:
        """Return the ids of the ready containers of the agents."""
        items = self.cluster.control_plane.get("pods", "--namespace=kube-system", "--selector=k8s-app=kube-proxy")[
            "items"
        ]
        statuses = [status for item in items for status in item["status"].get("containerStatuses", ())]
        return {status["containerID"] for status in statuses if status["ready"]}

    def remove_node(self) -> None:
        """Drain and delete the last node, then stop it."""
        node = self.cluster.nodes[-1]
        self._kubectl("drain", node.network.name, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=120s")
        self._kubectl("delete", "node", node.network.name)
        node.stop()


def _in_url(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _undo_to_kube_proxy(world: World) -> None:
    revision = world.revision_of("registry.k8s.io/kube-proxy")
    world.rollouts.change("rollout", "undo", DAEMON_SET, f"--to-revision={revision}")


def _set_image(image: str) -> Callable[[World], object]:
    return lambda world: world.rollouts.change("set", "image", DAEMON_SET, f"kube-proxy={image}")


def _apply_previous(tree: Path, world: World) -> None:
    """Install the previous version, with its own manifests."""
    tag = f"images: [{{name: {PYPROXY}, newTag: {PREVIOUS_TAG}}}]"
    world.rollouts.apply(derived(tree / OVERLAYS / "nftables", "previous", tag))


def _apply(mode: str) -> Callable[[World], object]:
    return lambda world: world.rollouts.install(Proxy("pyproxy", mode))


def scenarios(image: str, previous: Path) -> Sequence[Scenario]:
    """Return all scenarios in their order, which begins with kube-proxy in iptables mode.

    Args:
        image: pyproxy's.
        previous: the source tree of the previous version.
    """
    return (
        Scenario("set image: from kube-proxy to pyproxy", _set_image(image)),
        Scenario("rollout restart", lambda world: world.rollouts.change("rollout", "restart", DAEMON_SET)),
        Scenario("rollout undo: from pyproxy to kube-proxy", _undo_to_kube_proxy),
        Scenario("apply -k: from kube-proxy to the nftables overlay", _apply("nftables")),
        Scenario(
            "apply -k: upgrade from the previous version",
            _apply("nftables"),
            prepare=partial(_apply_previous, previous),
        ),
        Scenario("deletion of the binding kubeadm:node-proxier", _delete_binding),
        Scenario("SIGKILL of all agents at once", World.kill_all_agents),
        Scenario("apply -k: from the nftables to the iptables overlay", _apply("iptables")),
        Scenario("a node is drained and deleted", World.remove_node, held=("steady",)),
    )


def _delete_binding(world: World) -> None:
    """Delete kubeadm's permissions; the agents have their own. They list again after a restart."""
    world.cluster.control_plane.kubectl("delete", "clusterrolebinding", "kubeadm:node-proxier")
    world.rollouts.change("rollout", "restart", DAEMON_SET)
