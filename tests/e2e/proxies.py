"""Rolls the proxies out, as a user would: kubeadm's kube-proxy, and pyproxy by image or by the manifests."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from .cluster import STATE, Cluster

ROOT = Path(__file__).resolve().parents[2]
OVERLAYS = "manifests/overlays"
DAEMON_SET = "daemonset/kube-proxy"
_KUBE_PROXY = Path(__file__).parent / "manifests" / "kube-proxy.yaml"
_ROLLOUT_SECONDS = 300


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy in a mode: a column of the table."""

    name: str
    """pyproxy or kube-proxy."""
    mode: str

    def __str__(self) -> str:
        """Return the name of the column."""
        return f"{self.name} {self.mode}"

    def kustomization(self) -> Path:
        """Return the folder for `kubectl apply -k`: an overlay of the manifests, or one of ours on top of it.

        The nodes use iptables-nft, which pyproxy detects; its configuration has to name the other variant.
        """
        if self.mode != "iptables-legacy":
            return ROOT / OVERLAYS / self.mode
        base = ROOT / OVERLAYS / "iptables"
        settings = (base / "config.yaml").read_text() + "iptablesVariant: legacy\n"
        generator = "{name: pyproxy, namespace: kube-system, behavior: replace, files: [config.yaml]}"
        return derived(base, "legacy", f"configMapGenerator: [{generator}]", {"config.yaml": settings})


def derived(base: Path, name: str, changes: str, files: Mapping[str, str] = MappingProxyType({})) -> Path:
    """Return a kustomization on top of another one, as a user writes it to change the manifests."""
    folder = STATE / "kustomizations" / name
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        (folder / file).write_text(text)
    (folder / "kustomization.yaml").write_text(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n"
        f"resources: [{os.path.relpath(base, folder)}]\n{changes}\n"
    )
    return folder


class Rollouts:
    """Changes of the DaemonSet ``kube-proxy`` of a cluster."""

    def __init__(self, cluster: Cluster) -> None:
        """Use a cluster."""
        self._kubectl = cluster.control_plane.kubectl
        self._cluster = cluster

    def install(self, proxy: Proxy) -> float:
        """Install a proxy over what is there, wait for it, and return the duration of the rollout in seconds."""
        if proxy.name == "kube-proxy":
            manifest = _KUBE_PROXY.read_text().replace("@MODE@", proxy.mode)
            self._kubectl("apply", "--filename=-", stdin=manifest)
            # The pod template is the same in each mode, and kube-proxy does not read a changed file.
            self._kubectl("--namespace=kube-system", "rollout", "restart", DAEMON_SET)
            return self.wait()
        return self.apply(proxy.kustomization())

    def apply(self, kustomization: Path) -> float:
        """Apply a kustomization, wait for the rollout, and return its duration in seconds."""
        self._kubectl("apply", f"--kustomize={kustomization}")
        return self.wait()

    def change(self, *arguments: str) -> float:
        """Run a kubectl command in kube-system that changes the DaemonSet, and wait for the rollout."""
        self._kubectl("--namespace=kube-system", *arguments)
        return self.wait()

    def wait(self) -> float:
        """Wait until the rollout is complete and DNS works, and return how long the rollout took."""
        started = time.monotonic()
        self._kubectl("--namespace=kube-system", "rollout", "status", DAEMON_SET, f"--timeout={_ROLLOUT_SECONDS}s")
        seconds = time.monotonic() - started
        self._kubectl(
            *("--namespace=kube-system", "rollout", "status", "deployment/coredns"), f"--timeout={_ROLLOUT_SECONDS}s"
        )
        return seconds
