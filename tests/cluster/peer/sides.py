"""One lab with one proxy on its nodes: the real kube-proxy, or pyproxy.

Both run as users run them, with the same API server, and the same flags apart from those that select the mode.
"""

import os
import signal
import sys
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from tests.cluster.controlplane import KUBE_PROXY_USER, ControlPlane
from tests.cluster.kubeproxy import HOST_UNTOUCHED, KubeProxy
from tests.cluster.process import ClusterError
from tests.lab import Host, Lab, Process
from tests.lab.waiting import wait_until

from .modes import Mode
from .world import SHAPE, equip

PYPROXY = str(Path(sys.executable).with_name("pyproxy"))
_LOG_LINES = 40


class Side(ABC):
    """A lab with a proxy on each node, once started; the given stack closes it."""

    name: str

    def __init__(self, control_plane: ControlPlane, mode: Mode, stack: ExitStack) -> None:
        self.control_plane = control_plane
        self.mode = mode
        self.stack = stack
        self.lab = stack.enter_context(Lab(SHAPE, timeout_seconds=mode.pace.answer_seconds))
        equip(self.lab)

    def start(self, flags: Sequence[str]) -> None:
        """Start the proxy of each node; use `wait_for` to wait for their rules."""
        for node in self.lab.nodes:
            self.start_on(node, [*self.mode.flags, *flags])

    def rules(self, node: Host) -> str:
        """Return all rules of a node, of both families."""
        return "".join(node.run(*command) for command in self.mode.dumps)

    def wait_for(self, node: Host, condition: Callable[[str], bool], what: str) -> None:
        """Wait until the rules of a node satisfy a condition."""
        self._wait_until(node, lambda: condition(self.rules(node)), what)

    def _wait_until(self, node: Host, condition: Callable[[], bool], what: str) -> None:
        def holds() -> bool:
            self.require_alive(node)
            return condition()

        pace = self.mode.pace
        try:
            wait_until(
                holds,
                f"{self.name} on {node.name}: {what}",
                timeout_seconds=pace.patience_seconds,
                poll_seconds=pace.poll_seconds,
            )
        except (ClusterError, TimeoutError) as error:
            message = "\n".join([str(error), *self.log(node).splitlines()[-_LOG_LINES:]])
            raise ClusterError(message) from error

    def forget_flows(self) -> None:
        """Delete all conntrack entries on all nodes."""
        for node in self.lab.nodes:
            node.run("conntrack", "--flush")

    def forget_clients(self) -> None:
        """Delete the session affinity of all clients on all nodes."""
        for node in self.lab.nodes:
            self.mode.forget_clients(node)

    @abstractmethod
    def start_on(self, node: Host, flags: Sequence[str]) -> None:
        """Start the proxy of a node."""

    @abstractmethod
    def require_alive(self, node: Host) -> None:
        """Raise an error if the proxy of a node has ended."""

    @abstractmethod
    def log(self, node: Host) -> str:
        """Return the log of the proxy of a node."""


class KubeProxySide(Side):
    """The side of kube-proxy, which is the reference."""

    name = "kube-proxy"

    def __init__(self, control_plane: ControlPlane, mode: Mode, stack: ExitStack) -> None:
        super().__init__(control_plane, mode, stack)
        self._proxies: dict[str, KubeProxy] = {}

    def start_on(self, node: Host, flags: Sequence[str]) -> None:
        """See `Side`."""
        proxy = KubeProxy(
            self.control_plane, node.namespace.name, node=node.name, backend=self.mode.kube_proxy, flags=flags
        )
        self._proxies[node.name] = self.stack.enter_context(proxy)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the proxies of all nodes."""
        for proxy in self._proxies.values():
            os.kill(proxy.process.pid, number)

    def wait_for(self, node: Host, condition: Callable[[str], bool], what: str) -> None:
        """Wait until the rules satisfy a condition, and until the end of that sync."""
        super().wait_for(node, condition, what)
        if self.mode.syncs is not None:
            begun, _ = self._syncs(node)
            self._wait_until(node, lambda: self._syncs(node)[1] >= begun, f"{begun} are complete")

    def _syncs(self, node: Host) -> tuple[Counter[str], Counter[str]]:
        """Return how many syncs of each family have started, and how many have ended."""
        assert self.mode.syncs is not None
        found = self.mode.syncs.findall(self.log(node))
        begun, ended = ([family for end, family in found if bool(end) is is_end] for is_end in (False, True))
        return Counter(begun), Counter(ended)

    def require_alive(self, node: Host) -> None:
        """See `Side`."""
        self._proxies[node.name].process.wait_until(lambda: True, "", timeout_seconds=0)

    def log(self, node: Host) -> str:
        """See `Side`."""
        return self._proxies[node.name].process.log.read_text(errors="replace")


class PyproxySide(Side):
    """The side of pyproxy, which is tested."""

    name = "pyproxy"

    def __init__(self, control_plane: ControlPlane, mode: Mode, stack: ExitStack) -> None:
        super().__init__(control_plane, mode, stack)
        self._agents: dict[str, Process] = {}

    def start_on(self, node: Host, flags: Sequence[str]) -> None:
        """See `Side`."""
        server = self.stack.enter_context(self.control_plane.exposed_in(node.namespace.name))
        user = {"token": self.control_plane.static_token(KUBE_PROXY_USER)}
        kubeconfig = self.control_plane.kubeconfig_for(user, server)
        own = (f"--kubeconfig={kubeconfig}", f"--hostname-override={node.name}", "--metrics-bind-address=")
        lock = {"XTABLES_LOCKFILE": str(kubeconfig.with_suffix(".lock"))}
        agent = node.start(
            PYPROXY, "run", *own, "--control-socket=", *self.mode.pyproxy, *HOST_UNTOUCHED, *flags, env=lock
        )
        self._agents[node.name] = agent
        self.stack.callback(agent.stop)

    def require_alive(self, node: Host) -> None:
        """See `Side`."""
        if not self._agents[node.name].is_running:
            message = f"pyproxy on {node.name} has ended\n{self.log(node)}"
            raise ClusterError(message)

    def log(self, node: Host) -> str:
        """See `Side`."""
        return self._agents[node.name].stderr
