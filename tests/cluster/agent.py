"""The installed pyproxy, connected to the control plane; the counterpart of `kubeproxy`."""

import os
import re
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from .controlplane import KUBE_PROXY_USER, ControlPlane
from .kubeproxy import HOST_UNTOUCHED, Backend, ruleset
from .process import Process

PYPROXY = str(Path(sys.executable).with_name("pyproxy"))
_PATIENCE_SECONDS = 60.0
_DISPATCH = re.compile(r'^-A KUBE-SERVICES .*"default/([a-z0-9-]+)[ :].*-j (\S+)', re.MULTILINE)
_ENDPOINT = re.compile(r"^-A (\S+) .*-j DNAT --to-destination (\S+)", re.MULTILINE)


class Agent:
    """A pyproxy that runs until its ``with`` block ends, and can be stopped and started in it; its rules stay."""

    def __init__(  # noqa: PLR0913 - like KubeProxy, with options for some tests
        self,
        control_plane: ControlPlane,
        namespace: str,
        *,
        node: str,
        backend: Backend,
        flags: Sequence[str] = (),
        kubeconfig: Path | None = None,
        environment: Mapping[str, str] | None = None,
        wrapper: Sequence[str] = (),
        names_mode: bool = True,
    ) -> None:
        """Configure the agent.

        Args:
            control_plane: the control plane to which it connects.
            namespace: the network namespace in which it runs.
            node: the name of its Node.
            backend: the proxy mode and variant.
            flags: further flags.
            kubeconfig: None for one with a token and the relay; an empty path for in-cluster configuration.
            environment: further environment variables.
            wrapper: a command that runs the rest of its command line.
            names_mode: whether to pass the mode on the command line; otherwise it has to be the default.
        """
        self.log = Path()
        self._control_plane = control_plane
        self._namespace = namespace
        self._backend: Backend = backend
        mode, _, variant = backend.partition("-")
        self._flags = [f"--hostname-override={node}", "--control-socket=", *HOST_UNTOUCHED, *flags]
        if names_mode:
            self._flags.append(f"--proxy-mode={mode}")
        if variant:
            self._flags.append(f"--iptables-variant={variant}")
        self._kubeconfig = kubeconfig
        self._environment = dict(environment or {})
        self._wrapper = wrapper
        self._at_exit = ExitStack()

    def __enter__(self) -> Self:
        """Start the agent; use `wait_until` to wait for its effects."""
        with ExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"pyproxy-agent-{os.getpid()}-")))
            self.log = directory / "pyproxy.log"
            # A separate lock file: programs in other namespaces would wait for the default one.
            self._environment.setdefault("XTABLES_LOCKFILE", str(directory / "xtables.lock"))
            if self._kubeconfig is None:
                server = stack.enter_context(self._control_plane.exposed_in(self._namespace))
                user = {"token": self._control_plane.static_token(KUBE_PROXY_USER)}
                self._kubeconfig = self._control_plane.kubeconfig_for(user, server)
            self.start()
            stack.callback(self.stop)
            self._at_exit = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the agent."""
        self._at_exit.close()

    def start(self) -> None:
        """Start the agent."""
        where = [f"--kubeconfig={self._kubeconfig}"] if self._kubeconfig != Path() else []
        self.process = Process(
            [*self._wrapper, PYPROXY, "run", *where, *self._flags],
            log=self.log,
            namespace=self._namespace,
            environment=self._environment,
        )

    def stop(self) -> int:
        """Terminate the agent, and return its exit status."""
        return self.process.stop()

    def wait_until(self, condition: Callable[[], bool], what: str, seconds: float = _PATIENCE_SECONDS) -> None:
        """Wait for a condition that the agent causes."""
        self.process.wait_until(condition, what, timeout_seconds=seconds)

    def wait_for_log(self, text: str) -> None:
        """Wait until its log contains a text; the log of earlier runs counts as well."""
        self.wait_until(lambda: text in self.log.read_text(), f"{text!r} in its log")

    def services(self) -> dict[str, set[str]]:
        """Return the endpoints in the kernel by Service of the namespace default, without the Service of the API server."""
        chains: dict[str, str] = {}
        found: dict[str, set[str]] = {}
        rules = self.rules()
        for name, target in _DISPATCH.findall(rules):
            found[name] = set()
            chains[target] = name
        for chain, endpoint in _ENDPOINT.findall(rules):
            if chain in chains:
                found[chains[chain]].add(endpoint)
        found.pop("kubernetes", None)
        return found

    def rules(self) -> str:
        """Return all rules of both families in the kernel, from any program."""
        return ruleset(self._namespace, self._backend)
