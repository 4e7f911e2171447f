"""Configuration compared with the real kube-proxy: flags, files in both directions, and kubeadm's command line.

These tests check whether both programs read and write the same; other suites test the effects of the values.
"""

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from pyproxy.config.config import OPTIONS, Config
from pyproxy.config.config_file import read_config_file

from .agent import PYPROXY
from .api import JsonObject
from .controlplane import ControlPlane
from .kubeproxy import ruleset
from .namespace import call_inside
from .objects import NODE, Cluster
from .process import Process, binary
from .relay import Relay, bound_socket

ROOT = Path(__file__).parents[2]
KUBEADM = ROOT / "tests" / "inputs" / "kubeadm-config.yaml"
EXPLICIT = ROOT / "tests" / "inputs" / "explicit-config.yaml"
_FLAG = re.compile(
    r"^ +(?:-\w, )?--(?P<name>[a-z0-9-]+)(?P<type> [\w.,=\[\]]+)?  +.*?(?:\(default (?P<default>.*)\))?$", re.MULTILINE
)
WHAT_TO_DO = {"help", "version", "cleanup"}
CHOSEN_BY_COST = {"iptables-min-sync-period": "1s", "ipvs-min-sync-period": "1s"}
"""Settings with other defaults, which pyproxy chooses by the cost of a sync."""
ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
MOUNTS = f"""
mount -t tmpfs none /run
mount -t tmpfs none /var/lib
mkdir -p {ACCOUNT} /var/lib/kube-proxy
mount --bind "$1" {ACCOUNT}
mount --bind "$2" /var/lib/kube-proxy
shift 2
exec "$@"
"""
"""Runs a command with the files of its first two arguments as those of a service account and the ConfigMap."""
PATIENCE_SECONDS = 60.0


@pytest.fixture(scope="module")
def kube_proxys_flags(peers: None) -> dict[str, re.Match[str]]:  # noqa: ARG001 - fails without the programs
    """Provide the flags of the real kube-proxy, from its help."""
    done = subprocess.run([binary("kube-proxy"), "--help"], capture_output=True, text=True, check=True)
    return {match["name"]: match for match in _FLAG.finditer(done.stdout) if match["name"] not in WHAT_TO_DO}


def test_every_flag_of_kube_proxy_is_accepted(kube_proxys_flags: dict[str, re.Match[str]]) -> None:
    """Every flag of the real kube-proxy exists in pyproxy, of the same kind and with the same default."""
    ours = {about.flag: about for about in OPTIONS.values()}
    defaults = Config()

    assert len(kube_proxys_flags) > 50
    assert set() == kube_proxys_flags.keys() - ours.keys()
    for flag, match in kube_proxys_flags.items():
        about = ours[flag]
        assert (flag, match["type"] is None) == (flag, about.grammar.is_switch)
        if match["default"] is not None:
            expected = about.grammar.parse(match["default"].strip('"'))
            known = about.grammar.parse(CHOSEN_BY_COST[flag]) if flag in CHOSEN_BY_COST else about.value(defaults)
            assert (flag, expected) == (flag, known)


def by_kube_proxy(tmp_path: Path, *words: str) -> JsonObject:
    """Return the configuration that the real kube-proxy writes for these arguments."""
    return written(binary("kube-proxy"), tmp_path / "kube-proxys", *words)


def by_pyproxy(tmp_path: Path, *words: str) -> JsonObject:
    """Return the configuration that pyproxy writes for these arguments."""
    return written(PYPROXY, tmp_path / "pyproxys", "run", *words)


def written(program: str, path: Path, *words: str) -> JsonObject:
    """Return the configuration that a program writes."""
    done = subprocess.run([program, *words, f"--write-config-to={path}"], capture_output=True, text=True, check=False)
    assert (0, True) == (done.returncode, path.exists()), done.stderr
    tree: JsonObject = yaml.safe_load(path.read_text())
    return tree


def differences(one: Any, other: Any, path: str = "") -> dict[str, tuple[Any, Any]]:  # noqa: ANN401 - any JSON
    """Return the differences between two trees, by path."""
    if not isinstance(one, dict) or not isinstance(other, dict):
        return {} if one == other else {path.lstrip("."): (one, other)}
    found: dict[str, tuple[Any, Any]] = {}
    for name in one.keys() | other.keys():
        found |= differences(one.get(name), other.get(name), f"{path}.{name}")
    return found


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ((), {"iptables.minSyncPeriod": ("1s", "0s")}),
        ((f"--config={KUBEADM}",), {"iptables.minSyncPeriod": ("1s", "0s")}),
        (
            ("--proxy-mode=nftables", "--masquerade-all", "--iptables-sync-period=44s"),
            {"nftables.minSyncPeriod": ("1s", "0s")},
        ),
        (
            ("--proxy-mode=nftables", "--iptables-masquerade-bit=3"),
            {"nftables.minSyncPeriod": ("1s", "0s"), "nftables.masqueradeBit": (14, 3)},
        ),
        (("--proxy-mode=ipvs", "--ipvs-exclude-cidrs=10.0.0.0/8"), {"ipvs.minSyncPeriod": ("1s", "0s")}),
        (
            ("--feature-gates=AllBeta=true", "--conntrack-min=0", "--kube-api-qps=7.5", "-v=3", "--oom-score-adj=-5"),
            {"iptables.minSyncPeriod": ("1s", "0s")},
        ),
    ],
)
def test_both_write_the_same(tmp_path: Path, peers: None, words: tuple[str, ...], wanted: JsonObject) -> None:  # noqa: ARG001
    """For the same arguments both write the same file, except blocks of other modes, which kube-proxy leaves empty."""
    theirs, ours = by_kube_proxy(tmp_path, *words), by_pyproxy(tmp_path, *words)
    blocks = {"iptables", "ipvs", "nftables"} - {ours["mode"]}
    found = {path: pair for path, pair in differences(theirs, ours).items() if path.partition(".")[0] not in blocks}

    assert wanted == found


@pytest.mark.parametrize("words", [(), ("--proxy-mode=auto",), ("--proxy-mode=nftables",), (f"--config={EXPLICIT}",)])
def test_kube_proxy_reads_the_file_of_pyproxy(tmp_path: Path, peers: None, words: tuple[str, ...]) -> None:  # noqa: ARG001
    """After a rollback kube-proxy reads pyproxy's file without an error, and with the same meaning."""
    ours = by_pyproxy(tmp_path, *words)
    theirs = by_kube_proxy(tmp_path, f"--config={tmp_path / 'pyproxys'}")
    blocks = {"iptables", "ipvs", "nftables"} - {theirs["mode"]}
    found = {path for path in differences(ours, theirs) if path.partition(".")[0] not in blocks}

    assert found <= {"mode", "nftables.minSyncPeriod", "iptables.minSyncPeriod"}
    assert theirs["mode"] == (ours["mode"] or "iptables")
    assert () == read_config_file(str(tmp_path / "kube-proxys"), {}).warnings


class Pod:
    """The volumes and the command line of kubeadm's kube-proxy; the program is pyproxy under the name kube-proxy."""

    def __init__(self, folder: Path, kubeconfig: str) -> None:
        self._config_map = folder / "config-map"
        self._config_map.mkdir()
        self.account = folder / "account"
        self.account.mkdir()
        self._files = {"config.conf": KUBEADM.read_text(), "kubeconfig.conf": kubeconfig}
        self._updates = 0
        self.update()
        for name in self._files:
            (self._config_map / name).symlink_to(Path("..data", name))
        (folder / "kube-proxy").symlink_to(PYPROXY)
        words = ("--config=/var/lib/kube-proxy/config.conf", f"--hostname-override={NODE}")
        mounts = ("unshare", "--mount", "sh", "-euc", MOUNTS, "sh", str(self.account), str(self._config_map))
        self.command = [*mounts, str(folder / "kube-proxy"), *words]

    def update(self, **replacements: str) -> None:
        """Change the ConfigMap as the kubelet does: write a new directory and replace a link atomically."""
        self._updates += 1
        for old, new in replacements.items():
            self._files["config.conf"] = self._files["config.conf"].replace(f"{old}: ", f"{old}: {new} # ", 1)
        data = self._config_map / f"..{self._updates}"
        data.mkdir()
        for name, text in self._files.items():
            (data / name).write_text(text)
        new_link = self._config_map / "..data_tmp"
        new_link.symlink_to(data.name)
        new_link.rename(self._config_map / "..data")


KUBEADMS_KUBECONFIG = f"""\
apiVersion: v1
kind: Config
clusters:
- cluster:
    certificate-authority: {ACCOUNT}/ca.crt
    server: SERVER
  name: default
contexts:
- context:
    cluster: default
    namespace: default
    user: default
  name: default
current-context: default
users:
- name: default
  user:
    tokenFile: {ACCOUNT}/token
"""


@pytest.fixture
def pod(control_plane: ControlPlane, cluster: Cluster, relay: Relay, namespace: str, tmp_path: Path) -> Iterator[Pod]:
    """Provide a pod as configured by kubeadm, on a node with one Service."""
    with ExitStack() as at_exit:
        server = at_exit.enter_context(control_plane.exposed_in(namespace, relay))
        made = Pod(tmp_path, KUBEADMS_KUBECONFIG.replace("SERVER", server))
        (made.account / "token").write_text(control_plane.static_token())
        (made.account / "ca.crt").write_bytes(control_plane.authority.certificate.read_bytes())
        cluster.create_node()
        cluster.create_service("web")
        cluster.create_slice("web", "10.244.0.7")
        yield made


def test_kubeadms_config_map_and_command(pod: Pod, namespace: str, tmp_path: Path) -> None:
    """The program starts with kubeadm's ConfigMap, kubeconfig and command; after a change of the ConfigMap it exits."""
    log = tmp_path / "log"
    with Process(pod.command, log=log, namespace=namespace) as agent:
        said = log.read_text
        agent.wait_until(lambda: "first sync done" in said(), "a first sync", timeout_seconds=PATIENCE_SECONDS)
        assert "10.244.0.7:8080" in ruleset(namespace, "iptables-nft")
        assert [] == [line for line in said().splitlines() if line.startswith("E")]
        assert "clusterCIDR=10.244.0.0/16" in said()

        pod.update(oomScoreAdj="-5")
        message = "/var/lib/kube-proxy/config.conf has changed: ending for a restart; rules stay in place"
        wait_for_end(agent)
    assert message in said()
    assert "10.244.0.7:8080" in ruleset(namespace, "iptables-nft")


def wait_for_end(agent: Process) -> None:
    """Wait until a process exits, and expect a failure status, so that supervisors restart it."""
    assert 1 == agent.wait(PATIENCE_SECONDS)


def with_flags(pod: Pod, *flags: str) -> list[str]:
    """Return the command of the pod with further arguments, and without waiting for a running proxy."""
    return [*pod.command, "--healthz-bind-address=", *flags]


def test_hard_fail_of_a_taken_address(pod: Pod, namespace: str, tmp_path: Path) -> None:
    """With --bind-address-hard-fail an address in use ends the program; without it, the program keeps working."""
    log, port = tmp_path / "log", call_inside(namespace, bound_socket)
    port.listen()
    flags = with_flags(pod, f"--metrics-bind-address=127.0.0.1:{port.getsockname()[1]}", "--takeover=never")
    with Process(flags, log=log, namespace=namespace) as patient:
        patient.wait_until(lambda: "first sync done" in log.read_text(), "a sync", timeout_seconds=PATIENCE_SECONDS)
        assert "metrics cannot be served on" in log.read_text()
    with Process([*flags, "--bind-address-hard-fail"], log=log, namespace=namespace) as strict:
        wait_for_end(strict)
    assert "Address already in use; ending, rules stay in place" in log.read_text()
    port.close()


class Servers(NamedTuple):
    """Two relays to the API server, which are two servers to an agent."""

    urls: list[str]
    first: Relay
    second: Relay


@pytest.fixture
def servers(control_plane: ControlPlane, relay: Relay, namespace: str) -> Iterator[Servers]:
    """Provide two servers."""
    second = control_plane.new_relay()
    with ExitStack() as at_exit:
        urls = [at_exit.enter_context(control_plane.exposed_in(namespace, way)) for way in (relay, second)]
        yield Servers(urls, relay, second)


def test_fail_over_between_api_servers(
    cluster: Cluster, pod: Pod, servers: Servers, namespace: str, tmp_path: Path
) -> None:
    """The agent uses one server of a PyproxyConfiguration at a time; after a failure it switches and stays."""
    log, own = tmp_path / "log", tmp_path / "pyproxy.yaml"
    listed = json.dumps(servers.urls)
    own.write_text(f"apiVersion: pyproxy.io/v1alpha1\nkind: PyproxyConfiguration\napiServers: {listed}\n")
    command = with_flags(pod, f"--pyproxy-config={own}", "--metrics-bind-address=")
    with Process(command, log=log, namespace=namespace) as agent:

        def arrives(endpoint: str) -> None:
            cluster.set_endpoint("web", endpoint)
            agent.wait_until(
                lambda: f"{endpoint}:8080" in ruleset(namespace, "iptables-nft"),
                endpoint,
                timeout_seconds=PATIENCE_SECONDS,
            )

        agent.wait_until(lambda: "first sync done" in log.read_text(), "a sync", timeout_seconds=PATIENCE_SECONDS)
        servers.first.refuse()
        arrives("10.244.0.8")
        servers.first.resume()
        arrives("10.244.0.9")
        # It stays with the second server, whatever happens to the first one.
        said = log.read_text().count("API server lost")
        servers.first.refuse()
        arrives("10.244.0.10")
        assert said == log.read_text().count("API server lost")
        servers.first.resume()
        servers.second.refuse()
        arrives("10.244.0.11")


def test_start_with_an_unavailable_first_api_server(pod: Pod, servers: Servers, namespace: str, tmp_path: Path) -> None:
    """A server that is unavailable at the start is skipped."""
    log = tmp_path / "log"
    servers.first.refuse()
    command = with_flags(pod, f"--api-servers={','.join(servers.urls)}", "--metrics-bind-address=")
    with Process(command, log=log, namespace=namespace) as agent:
        agent.wait_until(lambda: "first sync done" in log.read_text(), "a sync", timeout_seconds=PATIENCE_SECONDS)
    servers.first.resume()
