"""The real kube-proxy, for comparisons: it runs in a network namespace of a test, and does not change the host."""

import http.client
import itertools
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, Self, TypeAlias

from tests.packets.objects import endpoint_slice

from .api import JsonObject, exchange
from .controlplane import KUBE_PROXY_USER, ControlPlane
from .namespace import call_inside, command_inside
from .process import ClusterError, Process, binary
from .relay import LOOPBACK

Backend: TypeAlias = Literal["iptables-legacy", "iptables-nft", "nftables", "ipvs-legacy", "ipvs-nft"]
"""A proxy mode and, after the hyphen, the variant of the iptables tools in its PATH."""

_METRICS_PORT = 10249
_METRICS_SECONDS = 5.0
_IPTABLES_TOOLS = ("iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save", "ip6tables-restore")
HOST_UNTOUCHED = (
    # The conntrack limit is shared by all namespaces, and so is the size of the hash table, which depends on it.
    "--conntrack-max-per-core=0",
    # These belong to the namespace; 0 keeps the defaults of the kernel.
    "--conntrack-tcp-timeout-established=0",
    "--conntrack-tcp-timeout-close-wait=0",
    # Tests should not change which process the kernel kills first.
    "--oom-score-adj=0",
)
"""Flags of both proxies that prevent changes outside the namespace."""
_marks = itertools.count(10_000)
"""Ports of the marker Services: all with equally many digits, so that none is a prefix of another."""


@dataclass(frozen=True, slots=True)
class Syncs:
    """The number of syncs since the start, and their total duration."""

    count: int
    seconds: float


class KubeProxy:
    """A kube-proxy that runs until its ``with`` block ends; its rules stay in the namespace."""

    def __init__(  # noqa: PLR0913 - like Agent
        self,
        control_plane: ControlPlane,
        namespace: str,
        *,
        node: str,
        backend: Backend,
        flags: Sequence[str] = (),
        kubeconfig: Path | None = None,
    ) -> None:
        """Configure the namespace, the Node, the backend, further flags, and the kubeconfig (None for one with the relay)."""
        self._control_plane = control_plane
        self._namespace = namespace
        self._backend: Backend = backend
        mode, _, variant = backend.partition("-")
        self._variant = variant or "nft"
        self._flags = [f"--hostname-override={node}", f"--proxy-mode={mode}", *HOST_UNTOUCHED, *flags]
        self._kubeconfig = kubeconfig
        self._at_exit = ExitStack()

    def __enter__(self) -> Self:
        """Start kube-proxy; `wait_synced` waits for it."""
        with ExitStack() as stack:
            directory = Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix=f"pyproxy-kube-proxy-{os.getpid()}-"))
            )
            kubeconfig = self._kubeconfig
            if kubeconfig is None:
                server = stack.enter_context(self._control_plane.exposed_in(self._namespace))
                user = {"token": self._control_plane.static_token(KUBE_PROXY_USER)}
                kubeconfig = self._control_plane.kubeconfig_for(user, server)
            self.process = stack.enter_context(
                Process(
                    [binary("kube-proxy"), f"--kubeconfig={kubeconfig}", "--v=2", *self._flags],
                    log=directory / "kube-proxy.log",
                    namespace=self._namespace,
                    environment={
                        "PATH": f"{self._tools(directory)}:{os.environ['PATH']}",
                        # The tables belong to the namespace, so no other program should be waited for.
                        "XTABLES_LOCKFILE": str(directory / "xtables.lock"),
                    },
                )
            )
            self._at_exit = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop kube-proxy."""
        self._at_exit.close()

    def wait_synced(self, *, since: float = 0.0, timeout_seconds: float = 60.0) -> None:
        """Wait until every address family has synced after its last queued sync, and one was queued after ``since``.

        A change that arrives during a sync counts as synced at its end, although it waits for the next sync. So use
        `catch_up` after a change, or wait for its effects.
        """
        self.process.wait_until(
            lambda: self._is_synced(since), f"a sync after {since}", timeout_seconds=timeout_seconds
        )

    def catch_up(self, *, timeout_seconds: float = 60.0) -> None:
        """Wait until all Services and EndpointSlices that the API server had before the call are programmed.

        A marker Service with one endpoint per family shows this: its rules come with, or after, all other rules.
        """
        with _mark(self._control_plane) as endpoints:

            def reached() -> bool:
                rules = self.rules()
                return all(endpoint.search(rules) for endpoint in endpoints)

            self.process.wait_until(reached, f"rules with {endpoints}", timeout_seconds=timeout_seconds)

    def metrics(self) -> dict[str, float]:
        """Return kube-proxy's metrics by name with labels, as text."""
        get = partial(http.client.HTTPConnection, LOOPBACK, _METRICS_PORT, timeout=_METRICS_SECONDS)
        text = call_inside(self._namespace, lambda: exchange(get(), "GET", "/metrics"))
        samples = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}

    def full_syncs(self) -> dict[str, Syncs]:
        """Return the full syncs so far by address family (IPv4, IPv6)."""
        name = "kubeproxy_sync_full_proxy_rules_duration_seconds"
        metrics = self.metrics()
        counts = _by_family(metrics, f"{name}_count")
        seconds = _by_family(metrics, f"{name}_sum")
        return {family: Syncs(int(counts[family]), seconds[family]) for family in counts}

    def rules(self) -> str:
        """Return all rules of both families in the kernel, from any program."""
        return ruleset(self._namespace, self._backend)

    def _tools(self, directory: Path) -> Path:
        """Create a directory in which the iptables tools are those of one variant, regardless of the host's default."""
        program = shutil.which(f"xtables-{self._variant}-multi")
        if program is None:
            message = f"the iptables variant {self._variant} is not installed"
            raise ClusterError(message)
        tools = directory / "tools"
        tools.mkdir()
        for tool in _IPTABLES_TOOLS:
            (tools / tool).symlink_to(program)
        return tools

    def _is_synced(self, since: float) -> bool:
        try:
            metrics = self.metrics()
        except OSError:  # it does not listen yet
            return False
        queued = _by_family(metrics, "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds")
        synced = _by_family(metrics, "kubeproxy_sync_proxy_rules_last_timestamp_seconds")
        if not queued or max(queued.values()) < since:
            return False
        return all(synced.get(family, 0.0) >= queued[family] for family in queued)


def ruleset(namespace: str, backend: Backend) -> str:
    """Return all rules of both families in a namespace, from any program."""
    mode, _, variant = backend.partition("-")
    commands = {
        "iptables": [[f"{tool}-{variant}-save"] for tool in ("iptables", "ip6tables")],
        "nftables": [["nft", "list", "ruleset"]],
        "ipvs": [["ipvsadm", "--list", "--numeric"]],
    }
    inside = (command_inside(namespace, command) for command in commands[mode])
    return "".join(subprocess.run(command, check=True, capture_output=True, text=True).stdout for command in inside)


def _by_family(metrics: Mapping[str, float], name: str) -> dict[str, float]:
    written = {family: f'{name}{{ip_family="{family}"}}' for family in ("IPv4", "IPv6")}
    return {family: metrics[key] for family, key in written.items() if key in metrics}


@contextmanager
def _mark(control_plane: ControlPlane) -> Iterator[list[re.Pattern[str]]]:
    """Create a Service with a unique endpoint per family; yield patterns of the endpoints in rules."""
    port = next(_marks)
    name = f"mark-{port}"
    services = "/api/v1/namespaces/default/services"
    slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
    addresses = {"IPv4": "198.51.100.1", "IPv6": "2001:db8::1"}
    objects = {f"{services}/{name}": (services, _marking_service(name))}
    for family, address in addresses.items():
        wanted = endpoint_slice(name, family, [address], [{"port": port}], suffix=family.lower())
        objects[f"{slices}/{wanted['metadata']['name']}"] = (slices, wanted)
    made = []
    try:
        for path, (collection, wanted) in objects.items():
            control_plane.request("POST", collection, wanted)
            made.append(path)
        # iptables and ipvsadm write address:port, with brackets for IPv6; nft writes address . port.
        yield [re.compile(rf"{re.escape(address)}(\]?:| \. ){port}\b") for address in addresses.values()]
    finally:
        for path in made:
            control_plane.request("DELETE", path)


def _marking_service(name: str) -> JsonObject:
    return {"metadata": {"name": name}, "spec": {"ipFamilyPolicy": "RequireDualStack", "ports": [{"port": 9}]}}
