"""The real kube-proxy, as a peer: it runs in a network namespace of a test and leaves the host as it is."""

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

from .api import JsonObject, exchange
from .controlplane import KUBE_PROXY_USER, ControlPlane
from .namespace import call_inside, command_inside
from .process import ClusterError, Process, binary
from .relay import LOOPBACK

Backend: TypeAlias = Literal["iptables-legacy", "iptables-nft", "nftables", "ipvs-legacy", "ipvs-nft"]
"""A proxy mode and, after the hyphen, the variant of the iptables tools that it finds."""

_METRICS_PORT = 10249
_METRICS_SECONDS = 5.0
_IPTABLES_TOOLS = ("iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save", "ip6tables-restore")
HOST_UNTOUCHED = (
    # The limit of conntrack is one for all namespaces, and so is the size of its hash table, which grows with it.
    "--conntrack-max-per-core=0",
    # These belong to the namespace; at 0 the tests measure the kernel's own, not the proxy's.
    "--conntrack-tcp-timeout-established=0",
    "--conntrack-tcp-timeout-close-wait=0",
    # Whom the kernel kills first is not for a test to say.
    "--oom-score-adj=0",
)
"""Flags of either proxy that keep it from what is not its namespace's."""
_marks = itertools.count(10_000)
"""Ports of the marks of `catch_up`: of one width, so that none is the beginning of another."""


@dataclass(frozen=True, slots=True)
class Syncs:
    """How many syncs there have been since the start, and how long they took in all."""

    count: int
    seconds: float


class KubeProxy:
    """A kube-proxy that lives as long as its ``with`` block; the rules it made stay in the namespace."""

    def __init__(
        self,
        control_plane: ControlPlane,
        namespace: str,
        *,
        node: str,
        backend: Backend,
        flags: Sequence[str] = (),
    ) -> None:
        """Describe it: the namespace and the Node it is for, the backend, and further flags."""
        self._control_plane = control_plane
        self._namespace = namespace
        self._backend: Backend = backend
        mode, _, variant = backend.partition("-")
        self._variant = variant or "nft"
        self._flags = [f"--hostname-override={node}", f"--proxy-mode={mode}", *HOST_UNTOUCHED, *flags]
        self._at_exit = ExitStack()

    def __enter__(self) -> Self:
        """Start kube-proxy; `wait_synced` waits for it."""
        with ExitStack() as stack:
            directory = Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix=f"pyproxy-kube-proxy-{os.getpid()}-"))
            )
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
                        # The tables are those of the namespace, so nobody elsewhere shall be waited for.
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
        """Wait until every address family has synced after it was last asked to, and one was asked after ``since``.

        A change that comes while a sync runs counts as synced at its end, though it waits for the next one: after a
        change, use `catch_up` or wait for what the change brings.
        """
        self.process.wait_until(
            lambda: self._is_synced(since), f"a sync after {since}", timeout_seconds=timeout_seconds
        )

    def catch_up(self, *, timeout_seconds: float = 60.0) -> None:
        """Wait until everything is programmed that the API server knew of Services and EndpointSlices before the call.

        A Service with one endpoint a family marks the moment: its rules can only come with, or after, all others.
        """
        with _mark(self._control_plane) as endpoints:

            def reached() -> bool:
                rules = self.rules()
                return all(endpoint.search(rules) for endpoint in endpoints)

            self.process.wait_until(reached, f"rules with {endpoints}", timeout_seconds=timeout_seconds)

    def metrics(self) -> dict[str, float]:
        """Return kube-proxy's metrics by name with labels, as they are written."""
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
        """Return the rules of both families that are in the kernel now, whoever made them."""
        return ruleset(self._namespace, self._backend)

    def _tools(self, directory: Path) -> Path:
        """Make a folder where the names of the iptables tools stand for one variant, whatever the host's default is."""
        program = shutil.which(f"xtables-{self._variant}-multi")
        if program is None:
            message = f"iptables is not installed in its variant {self._variant}"
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
    """Return the rules of both families that are in a namespace now, whoever made them."""
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
    """Keep a Service with an endpoint a family that no other has; give the endpoints as rules write them."""
    port = next(_marks)
    name = f"mark-{port}"
    services = "/api/v1/namespaces/default/services"
    slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
    addresses = {"ipv4": "198.51.100.1", "ipv6": "2001:db8::1"}
    objects = {f"{services}/{name}": (services, _marking_service(name))}
    for family, address in addresses.items():
        objects[f"{slices}/{name}-{family}"] = (slices, _marking_slice(name, family, address, port))
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


def _marking_slice(service: str, family: str, address: str, port: int) -> JsonObject:
    labels = {"kubernetes.io/service-name": service}
    return {
        "metadata": {"name": f"{service}-{family}", "labels": labels},
        "addressType": family.replace("ip", "IP"),
        "endpoints": [{"addresses": [address]}],
        "ports": [{"port": port}],
    }
