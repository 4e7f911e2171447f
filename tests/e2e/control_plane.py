"""The control plane of the cluster: etcd, API server, controller manager and scheduler, in a network namespace."""

import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from tests.cluster.api import kubeconfig
from tests.cluster.certificates import Authority
from tests.cluster.namespace import command_inside
from tests.cluster.process import ClusterError, Process, run_kubectl

from .network import CONTROL_ADDRESS, CONTROL_NAMESPACE, NODES

JsonObject: TypeAlias = dict[str, Any]

SERVER = f"https://{CONTROL_ADDRESS}:6443"
_START_SECONDS = 120.0
_KUBECTL_SECONDS = 300.0
_ETCD_CLIENTS, _ETCD_PEERS = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
_SERVER_NAMES = (
    *(f"IP:{CONTROL_ADDRESS}", "IP:127.0.0.1", "IP:10.96.0.1", "IP:fd00:10:96::1", "DNS:localhost"),
    *("DNS:kubernetes", "DNS:kubernetes.default", "DNS:kubernetes.default.svc"),
    "DNS:kubernetes.default.svc.cluster.local",
)
_ISSUER = "https://kubernetes.default.svc.cluster.local"


class ControlPlane:
    """A control plane that runs until it is stopped.

    Args:
        state: the folder of the cluster, in which it gets a folder of its own.
        programs: paths by name.
    """

    def __init__(self, state: Path, programs: Mapping[str, Path]) -> None:
        self.directory = state / "control-plane"
        self.directory.mkdir(parents=True)
        self._programs = programs
        self._running: list[Process] = []
        self._authority = Authority(self.directory)
        users = {"admin": "system:masters"} | {f"system:node:{node.name}": "system:nodes" for node in NODES}
        self._tokens = {user: secrets.token_hex(16) for user in users}
        lines = (f'{self._tokens[user]},{user},{user},"{group}"\n' for user, group in users.items())
        (self.directory / "tokens.csv").write_text("".join(lines))
        self.kubeconfig = self.directory / "admin.conf"
        self.kubeconfig.write_text(self.kubeconfig_of("admin"))

    def kubeconfig_of(self, user: str) -> str:
        """Return the kubeconfig of the administrator (`admin`) or of a kubelet."""
        return kubeconfig(SERVER, self._authority.certificate, {"token": self._tokens[user]})

    def start(self) -> None:
        """Start all programs, and wait until the API server is ready."""
        serving, accounts = self._authority.server(_SERVER_NAMES), self._authority.key("service-accounts")
        self._start(
            "etcd",
            *(f"--data-dir={self.directory}/etcd", "--unsafe-no-fsync", "--log-level=warn"),
            *(f"--listen-client-urls={_ETCD_CLIENTS}", f"--advertise-client-urls={_ETCD_CLIENTS}"),
            f"--listen-peer-urls={_ETCD_PEERS}",
        )
        apiserver = self._start(
            "kube-apiserver",
            *(f"--etcd-servers={_ETCD_CLIENTS}", "--service-cluster-ip-range=10.96.0.0/16,fd00:10:96::/112"),
            *("--bind-address=0.0.0.0", f"--advertise-address={CONTROL_ADDRESS}", "--secure-port=6443"),
            *("--allow-privileged", "--authorization-mode=Node,RBAC"),
            *(f"--tls-cert-file={serving.certificate}", f"--tls-private-key-file={serving.key}"),
            *(f"--client-ca-file={self._authority.certificate}", "--token-auth-file=tokens.csv"),
            *(f"--service-account-issuer={_ISSUER}", f"--service-account-key-file={accounts}"),
            *(f"--service-account-signing-key-file={accounts}", "--kubelet-preferred-address-types=InternalIP"),
        )
        apiserver.wait_until(self._is_ready, "/readyz", timeout_seconds=_START_SECONDS)
        client = f"--kubeconfig={self.kubeconfig}"
        self._start(
            *("kube-controller-manager", client, f"--service-account-private-key-file={accounts}"),
            *(
                f"--root-ca-file={self._authority.certificate}",
                "--leader-elect=false",
                "--node-monitor-grace-period=60s",
            ),
        )
        self._start("kube-scheduler", client, "--leader-elect=false")

    def stop(self) -> None:
        """Kill all programs: nothing of their state is kept."""
        while self._running:
            self._running.pop().kill()

    def command(self, program: str, *arguments: str) -> list[str]:
        """Return a command line that runs a program in the namespace of the control plane."""
        return command_inside(CONTROL_NAMESPACE, [str(self._programs.get(program, program)), *arguments])

    def kubectl(self, *arguments: str, stdin: str = "", timeout_seconds: float = _KUBECTL_SECONDS) -> str:
        """Run kubectl as administrator, and return its output.

        Raises:
            ClusterError: it failed; the message has its error output.
        """
        return run_kubectl(self.command("kubectl"), arguments, self.kubeconfig, stdin, timeout_seconds)

    def get(self, *arguments: str) -> JsonObject:
        """Return what kubectl gets, as an object."""
        found: JsonObject = json.loads(self.kubectl("get", *arguments, "--output=json"))
        return found

    def _is_ready(self) -> bool:
        try:
            self.kubectl("get", "--raw=/readyz")
        except ClusterError:
            return False
        return True

    def _start(self, name: str, *arguments: str) -> Process:
        process = Process(
            [str(self._programs[name]), *arguments], log=self.directory / f"{name}.log", namespace=CONTROL_NAMESPACE
        )
        self._running.append(process)
        return process
