"""A Kubernetes control plane for tests: only a real etcd and a real kube-apiserver.

No kubelet, controller or scheduler runs, so Nodes, EndpointSlices and other objects stay as the test has written them.
Clients under test connect through a relay that can fail on command; the test itself connects directly. etcd listens
only on Unix sockets.
"""

import itertools
import json
import os
import secrets
import tempfile
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Literal, Self, TypeAlias

from .api import ApiClient, ApiError, JsonObject, UnixConnection, exchange, kubeconfig
from .certificates import Authority, Certificate
from .namespace import call_inside
from .process import Process, binary, run_kubectl
from .relay import LOOPBACK, Relay, bound_socket

Authorization: TypeAlias = Literal["AlwaysAllow", "RBAC"]

KUBE_PROXY_USER = "system:kube-proxy"
"""The user to whom the built-in RBAC role of kube-proxy is bound."""
SERVICE_CIDRS = ("10.96.0.0/16", "fd00:10:96::/112")
_SERVER_NAMES = ("IP:127.0.0.1", "IP:10.96.0.1", "IP:fd00:10:96::1", "DNS:localhost", "DNS:kubernetes.default.svc")
_ADMIN = "admin"
_GROUPS = {_ADMIN: "system:masters", KUBE_PROXY_USER: ""}
_ADVERTISED = "192.0.2.1"
"""The endpoint of the Service default/kubernetes: a documentation address, because a loopback address is invalid."""
_ETCD_CLIENTS, _ETCD_PEERS = "clients:0", "peers:0"
"""Sockets in etcd's directory: it accepts names of Unix sockets only in the form of host and port."""
_ETCD_OPERATIONS = 128
_START_SECONDS = 60.0
_KUBECTL_SECONDS = 120.0
"""Far longer than any request takes."""


class ControlPlane:
    """A control plane that runs until its ``with`` block ends; enter it in a thread that outlives the block."""

    def __init__(
        self,
        *,
        namespace: str | None = None,
        authorization: Authorization = "AlwaysAllow",
        flags: Sequence[str] = (),
    ) -> None:
        """Configure the network namespace of the API server (None for the caller's), and its further flags."""
        self.namespace = namespace
        self._flags = [f"--authorization-mode={authorization}", *flags]
        self._tokens = {user: secrets.token_hex(16) for user in _GROUPS}
        self._kubeconfigs = itertools.count(1)
        self._relays: list[Relay] = []
        self._apiserver: Process | None = None
        self._at_exit = ExitStack()

    def __enter__(self) -> Self:
        """Start etcd and the API server, and wait until it is ready."""
        with ExitStack() as stack:
            self.directory = Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix=f"pyproxy-cluster-{os.getpid()}-"))
            )
            stack.enter_context(self._start_etcd())
            self.port = stack.enter_context(_reserved_port(self.namespace))
            self._prepare_apiserver()
            stack.callback(self.stop_apiserver)
            stack.callback(self._close_relays)
            self.clients = self.new_relay()
            admin_port = self.port if self.namespace is None else self.new_relay().listen()
            self._client = ApiClient(admin_port, self._tokens[_ADMIN], self.authority.certificate)
            self.kubeconfig = self.kubeconfig_for({"token": self._tokens[_ADMIN]}, _url(admin_port))
            self.start_apiserver()
            self._at_exit = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop everything and remove all files."""
        self._at_exit.close()

    @contextmanager
    def exposed_in(self, namespace: str | None, relay: Relay | None = None) -> Iterator[str]:
        """Accept clients on the loopback of a network namespace, and yield the URL; they use the relay ``clients``."""
        relay = relay or self.clients
        port = relay.listen(namespace)
        try:
            yield _url(port)
        finally:
            relay.leave(port)

    def new_relay(self) -> Relay:
        """Return a further relay to the API server; it fails independently, like one of several servers."""
        relay = Relay(self.port, namespace=self.namespace)
        self._relays.append(relay)
        return relay

    def kill_connections(self) -> None:
        """Reset all connections of clients, including watches; clients may reconnect immediately."""
        self.clients.drop()

    def kubeconfig_for(self, user: Mapping[str, str], server: str) -> Path:
        """Write a kubeconfig for a user entry (token, tokenFile, client-certificate, …) and a URL of `exposed_in`."""
        path = self.directory / f"kubeconfig-{next(self._kubeconfigs)}"
        path.write_text(kubeconfig(server, self.authority.certificate, user))
        return path

    def static_token(self, user: str = KUBE_PROXY_USER) -> str:
        """Return a token of a user that is valid as long as the control plane runs."""
        return self._tokens[user]

    def create_token(self, service_account: str, namespace: str = "default", seconds: int = 600) -> str:
        """Return a new token of a service account, which is created if necessary; the shortest lifetime is 600 s."""
        accounts = f"/api/v1/namespaces/{namespace}/serviceaccounts"
        try:
            self.request("POST", accounts, {"metadata": {"name": service_account}})
        except ApiError as error:
            if error.status != HTTPStatus.CONFLICT:
                raise
        wanted = {"spec": {"expirationSeconds": seconds}}
        return str(self.request("POST", f"{accounts}/{service_account}/token", wanted)["status"]["token"])

    def client_certificate(self, user: str, groups: Sequence[str] = ()) -> Certificate:
        """Return a new client certificate for a user in groups."""
        return self.authority.client(user, groups)

    def request(self, method: str, path: str, body: JsonObject | None = None) -> JsonObject:
        """Send a request as administrator, not through the relay; a PATCH is a JSON merge patch."""
        return self._client.request(method, path, body)

    def kubectl(self, *arguments: str, input: str | None = None) -> str:  # noqa: A002 - as in subprocess
        """Run kubectl as administrator, not through the relay, and return its output."""
        return run_kubectl([binary("kubectl")], arguments, self.kubeconfig, input, _KUBECTL_SECONDS)

    def apply(self, manifest: str) -> None:
        """Apply a manifest of YAML or JSON."""
        self.kubectl("apply", "--filename=-", input=manifest)

    def create_node(
        self, name: str, addresses: Sequence[str], *, pod_cidrs: Sequence[str] = (), zone: str | None = None
    ) -> None:
        """Create a ready Node, with internal addresses, pod CIDRs and a zone."""
        labels = {"kubernetes.io/hostname": name} | ({"topology.kubernetes.io/zone": zone} if zone else {})
        node: JsonObject = {
            "metadata": {"name": name, "labels": labels},
            "status": {
                "addresses": [{"type": "InternalIP", "address": address} for address in addresses],
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        }
        if pod_cidrs:
            node["spec"] = {"podCIDR": pod_cidrs[0], "podCIDRs": list(pod_cidrs)}
        self.request("POST", "/api/v1/nodes", node)

    def start_apiserver(self) -> None:
        """Start the API server, on the same port and data as before, and wait until it is ready."""
        self._apiserver = Process(
            [binary("kube-apiserver"), *self._apiserver_flags],
            log=self.directory / "kube-apiserver.log",
            namespace=self.namespace,
        )
        self._apiserver.wait_until(self._client.is_ready, "/readyz", timeout_seconds=_START_SECONDS)

    def stop_apiserver(self) -> None:
        """Kill the API server: its state is in etcd, and a graceful shutdown would wait for watches."""
        if self._apiserver is not None:
            self._apiserver.kill()
            self._apiserver = None

    def compact(self) -> None:
        """Compact etcd, so that all earlier resource versions return 410 Gone; connections of clients are closed.

        The API server is restarted, because its watch cache would still serve the compacted versions.
        """
        self.stop_apiserver()
        # A key is required, here a zero byte; only the header of the answer is used.
        revision = self._ask_etcd("range", {"key": "AA=="})["header"]["revision"]
        self._ask_etcd("compaction", {"revision": revision, "physical": True})
        self.start_apiserver()

    def store(self, key: str, item: JsonObject | None) -> None:
        """Write an object to etcd without validation, under its key below /registry, or delete the key."""
        wanted = {"key": b64encode(f"/registry/{key}".encode()).decode()}
        if item is None:
            self._ask_etcd("deleterange", wanted)
        else:
            self._ask_etcd("put", wanted | {"value": b64encode(json.dumps(item).encode()).decode()})

    def store_all(self, items: Mapping[str, JsonObject]) -> None:
        """Write many objects to etcd as `store` does, in transactions of as many as etcd accepts by default."""
        for keys in _batches(list(items), _ETCD_OPERATIONS):
            puts = [
                {
                    "requestPut": {
                        "key": b64encode(f"/registry/{key}".encode()).decode(),
                        "value": b64encode(json.dumps(items[key]).encode()).decode(),
                    }
                }
                for key in keys
            ]
            self._ask_etcd("txn", {"success": puts})

    def cpu_seconds(self) -> float:
        """Return the CPU time of the API server since it was started."""
        assert self._apiserver is not None
        return self._apiserver.cpu_seconds()

    def _ask_etcd(self, what: str, body: JsonObject) -> JsonObject:
        connection = UnixConnection(self.directory / _ETCD_CLIENTS)
        answer: JsonObject = json.loads(exchange(connection, "POST", f"/v3/kv/{what}", body))
        return answer

    def _start_etcd(self) -> Process:
        clients, peers = f"unix://{_ETCD_CLIENTS}", f"unix://{_ETCD_PEERS}"
        command = [binary("etcd"), "--name=tests", "--data-dir=etcd", f"--initial-cluster=tests={peers}"]
        command += [f"--listen-client-urls={clients}", f"--advertise-client-urls={clients}"]
        command += [f"--listen-peer-urls={peers}", f"--initial-advertise-peer-urls={peers}"]
        command += ["--unsafe-no-fsync", "--log-level=warn"]
        etcd = Process(command, log=self.directory / "etcd.log")
        try:
            etcd.wait_until((self.directory / _ETCD_CLIENTS).exists, "its socket", timeout_seconds=_START_SECONDS)
        except BaseException:
            etcd.stop()
            raise
        return etcd

    def _prepare_apiserver(self) -> None:
        """Create what the API server keeps across restarts: certificates, tokens and flags."""
        self.authority = Authority(self.directory)
        serving = self.authority.server(_SERVER_NAMES)
        accounts = self.authority.key("service-accounts")
        tokens = self.directory / "tokens.csv"
        tokens.write_text("".join(f'{self._tokens[user]},{user},{user},"{_GROUPS[user]}"\n' for user in _GROUPS))
        self._apiserver_flags = [
            f"--etcd-servers=unix://{self.directory / _ETCD_CLIENTS}",
            "--etcd-compaction-interval=0",  # only compact() compacts
            f"--bind-address={LOOPBACK}",
            f"--secure-port={self.port}",
            f"--advertise-address={_ADVERTISED}",
            f"--service-cluster-ip-range={','.join(SERVICE_CIDRS)}",
            f"--tls-cert-file={serving.certificate}",
            f"--tls-private-key-file={serving.key}",
            f"--client-ca-file={self.authority.certificate}",
            f"--token-auth-file={tokens}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-signing-key-file={accounts}",
            f"--service-account-key-file={accounts}",
            "--disable-admission-plugins=ServiceAccount",  # would reject Pods, because no controller creates default accounts
            *self._flags,
        ]

    def _close_relays(self) -> None:
        for relay in self._relays:
            relay.close()


def _batches(keys: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(keys), size):
        yield keys[start : start + size]


@contextmanager
def _reserved_port(namespace: str | None) -> Iterator[int]:
    """Reserve a free port, also while the API server is stopped."""
    with call_inside(namespace, bound_socket) as reserved:
        yield int(reserved.getsockname()[1])


def _url(port: int) -> str:
    return f"https://{LOOPBACK}:{port}"
