"""The Helm chart: for the same values its objects are those of the kustomize overlays, and the API server accepts them."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from typing import Any

import pytest
import yaml

from tests.cluster.controlplane import ControlPlane

from .machine import ROOT, run

CHART = ROOT / "manifests" / "chart"
HELM = ROOT / ".cache" / "install-tools" / "helm"
KUBECTL = ROOT / ".cache" / "bin" / "kubectl"
IMAGE = "localhost/pyproxy:0.1.0"


@pytest.fixture(scope="module", autouse=True)
def programs(built: None) -> None:  # noqa: ARG001 - builds kubectl
    """Build helm and kubectl."""
    run("tests/install/tools.sh", "helm")


def helm(*argv: str) -> str:
    """Run helm and return its output; raises an error with what it wrote if it fails."""
    done = subprocess.run([HELM, *argv], capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    return done.stdout


def template(*settings: str) -> list[dict[str, Any]]:
    """Return the objects of the chart."""
    sets = [word for setting in settings for word in ("--set", setting)]
    text = helm("template", "pyproxy", str(CHART), "--namespace=kube-system", "--kube-version=1.37.2", *sets)
    return [document for document in yaml.safe_load_all(text) if document]


def kustomize(folder: str) -> list[dict[str, Any]]:
    """Return the objects of a kustomization."""
    return [*yaml.safe_load_all(run(str(KUBECTL), "kustomize", str(ROOT / "manifests" / folder)))]


def comparable(objects: list[dict[str, Any]]) -> dict[tuple[str, str], Any]:
    """Return objects by kind and name, without what only Helm or only kustomize adds."""

    def plain(value: Any) -> Any:  # noqa: ANN401 - JSON
        if isinstance(value, Mapping):
            kept = {key: plain(item) for key, item in value.items() if not str(key).startswith(HELM_ONLY)}
            return {key: item for key, item in kept.items() if item != {} or value[key] == {}}
        if isinstance(value, list):
            return [plain(item) for item in value]
        # kustomize appends a hash of the content to the name of the ConfigMap.
        return "pyproxy" if isinstance(value, str) and value.startswith("pyproxy-") and len(value) == HASHED else value

    found = {}
    for item in map(plain, objects):
        if item["kind"] == "ConfigMap" and "config.yaml" in item["data"]:
            item["data"]["config.yaml"] = yaml.safe_load(item["data"]["config.yaml"])
        found[item["kind"], item["metadata"]["name"]] = item
    return found


HELM_ONLY = ("helm.sh/", "app.kubernetes.io/managed-by", "app.kubernetes.io/instance", "pyproxy.io/config")
HASHED = len("pyproxy-0123456789")


def test_lint() -> None:
    """`helm lint` finds no fault."""
    assert "0 chart(s) failed" in helm("lint", "--strict", str(CHART))


@pytest.mark.parametrize("mode", ["nftables", "iptables", "ipvs"])
def test_the_chart_equals_the_overlay(mode: str) -> None:
    """The chart has the objects of the overlay of the same mode."""
    assert comparable(kustomize(f"overlays/{mode}")) == comparable(template(f"mode={mode}"))


def test_monitoring_equals_the_kustomization() -> None:
    """With monitoring the chart has the objects of manifests/monitoring, too."""
    chart = comparable(template("monitoring.enabled=true"))
    expected = comparable(kustomize("monitoring"))

    assert {("ServiceMonitor", "pyproxy"), ("PrometheusRule", "pyproxy")} < expected.keys()
    for key, item in expected.items():
        assert item.get("spec", item.get("data")) == chart[key].get("spec", chart[key].get("data"))
        assert item["metadata"]["labels"].items() <= chart[key]["metadata"]["labels"].items()


def test_values_reach_the_agent() -> None:
    """API servers, addresses, flags and the image are set where the agent reads them."""
    objects = comparable(
        template(
            "kubeProxyConfigMap.create=true",
            "clusterCIDR=10.244.0.0/16",
            "apiServers={https://10.0.0.1:6443,https://10.0.0.2:6443}",
            "metricsBindAddress=0.0.0.0:10249",
            "config.serviceProxyName=trial",
            "extraArgs={--v=4}",
            "image.digest=sha256:" + "0" * 64,
        )
    )
    pod = objects["DaemonSet", "kube-proxy"]["spec"]["template"]["spec"]
    configuration = objects["ConfigMap", "kube-proxy"]["data"]

    assert objects["ConfigMap", "pyproxy"]["data"]["config.yaml"] == {
        "apiVersion": "pyproxy.io/v1alpha1",
        "kind": "PyproxyConfiguration",
        "mode": "nftables",
        "apiServers": ["https://10.0.0.1:6443", "https://10.0.0.2:6443"],
        "metricsBindAddress": "0.0.0.0:10249",
        "serviceProxyName": "trial",
    }
    assert yaml.safe_load(configuration["config.conf"])["clusterCIDR"] == "10.244.0.0/16"
    cluster = yaml.safe_load(configuration["kubeconfig.conf"])["clusters"][0]["cluster"]
    assert cluster["server"] == "https://10.0.0.1:6443"
    assert [container["image"] for container in (*pod["initContainers"], *pod["containers"])] == [
        "localhost/pyproxy@sha256:" + "0" * 64
    ] * 2
    assert "--v=4" in pod["containers"][0]["command"]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("mode=ebpf", "mode"),
        ("apiServers={10.0.0.1}", "apiServers"),
        ("kubeProxyConfigMap.create=true", "apiServers: needed with kubeProxyConfigMap.create"),
        ("image.dijest=x", "dijest"),
    ],
)
def test_wrong_values_are_named(setting: str, message: str) -> None:
    """A value that is wrong, misspelt or missing is an error that names it."""
    done = subprocess.run(
        [HELM, "template", "pyproxy", CHART, "--kube-version=1.37.2", "--set", setting],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode
    assert message in done.stderr


def test_the_api_server_accepts_the_chart(control_plane: ControlPlane) -> None:
    """The real API server finds no unknown or invalid field in the objects that it knows."""
    objects = template(
        "kubeProxyConfigMap.create=true", "apiServers={https://10.0.0.1:6443}", "monitoring.enabled=true"
    )
    known = [item for item in objects if item["apiVersion"] != "monitoring.coreos.com/v1"]
    said = control_plane.kubectl(
        "apply", "--dry-run=server", "--validate=strict", "--filename=-", input=yaml.safe_dump_all(known)
    )

    assert len(known) == len(said.splitlines())
