"""The image, run as in the DaemonSet, by a real container runtime and with a real API server that uses RBAC."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from http import HTTPStatus
from pathlib import Path

import pytest

from pyproxy import __version__
from tests.cluster.controlplane import ControlPlane
from tests.cluster.http_get import get_inside
from tests.lab import Lab, tcp
from tests.lab.waiting import wait_until
from tests.packets.cluster import PYPROXY
from tests.packets.objects import JsonObject, port, service, slices

from .image import GIT_COMMIT, built_image, labels, mounted_image, size_bytes
from .machine import PATIENCE_SECONDS, ROOT
from .pod import Container, Node, run_to_end

MODES = ("iptables", "nftables")
"""Overlays whose mode every kernel of the tests supports."""
WEB = service("web", 10, port(80))
HOST_UNTOUCHED = "conntrack: {maxPerCore: 0}\n"
"""A limit of the whole machine, which tests do not change."""


@pytest.fixture(scope="module")
def manifests(control_plane: ControlPlane) -> dict[str, list[JsonObject]]:
    """Provide the objects of each overlay; those of one are in the API server, without pods of the DaemonSet."""
    found = {mode: rendered(control_plane, f"overlays/{mode}") for mode in (*MODES, "ipvs")}
    for item in found[MODES[0]]:
        control_plane.apply(json.dumps(item))
    return found


@pytest.fixture(scope="module")
def rootfs(debian: None) -> Iterator[Path]:  # noqa: ARG001 - the image is based on it
    """Provide the root file system of the image."""
    with mounted_image() as tree:
        yield tree


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    """Provide the mode of an overlay."""
    return str(request.param)


@pytest.fixture
def node(  # noqa: PLR0913, PLR0917  # what a node consists of
    control_plane: ControlPlane,
    lab: Lab,
    rootfs: Path,
    manifests: dict[str, list[JsonObject]],
    mode: str,
    tmp_path: Path,
) -> Iterator[Node]:
    """Provide a node of the cluster with a Service, and with the files that a kubelet would create."""
    host = lab["node1"]
    with ExitStack() as stack:
        server = stack.enter_context(control_plane.exposed_in(host.namespace.name))
        account = made(tmp_path / "account")
        (account / "token").write_text(control_plane.create_token("kube-proxy", "kube-system"))
        shutil.copy(control_plane.authority.certificate, account / "ca.crt")
        stack.callback(control_plane.kubectl, "delete", "node", host.name)
        control_plane.create_node(host.name, list(map(str, host.addresses)))
        for item in (WEB, *slices(WEB, "pod1-1")):
            control_plane.apply(json.dumps(item))
        yield Node(
            host,
            rootfs,
            tmp_path,
            {
                "kube-proxy": config_volume(control_plane, server, made(tmp_path / "config")),
                "pyproxy": own_config_volume(manifests[mode], made(tmp_path / "own-config")),
                "run": made(tmp_path / "run"),
                "xtables-lock": touched(tmp_path / "xtables.lock"),
                # Container runtimes create this directory if it is missing; the kernel of the tests needs no modules.
                "lib-modules": made(tmp_path / "modules"),
            },
            account,
        )
        host.run("nft", "flush", "ruleset")


def rendered(control_plane: ControlPlane, folder: str) -> list[JsonObject]:
    """Return the objects of a kustomization."""
    text = control_plane.kubectl("kustomize", str(ROOT / "manifests" / folder))
    items = control_plane.kubectl("apply", "--dry-run=client", "--output=json", "--filename=-", input=text)
    found: list[JsonObject] = json.loads(items).get("items", [json.loads(items)])
    return found


def pod_spec(objects: list[JsonObject]) -> JsonObject:
    """Return the spec of the DaemonSet's pods."""
    [daemon_set] = [item for item in objects if item["kind"] == "DaemonSet"]
    found: JsonObject = daemon_set["spec"]["template"]["spec"]
    return found


def config_volume(control_plane: ControlPlane, server: str, folder: Path) -> Path:
    """Write the files of the ConfigMap, completed as described in docs/install.md."""
    [config_map] = rendered(control_plane, "configmap")
    assert {"config.conf", "kubeconfig.conf"} == set(config_map["data"])
    for name, text in config_map["data"].items():
        (folder / name).write_text(text.replace("https://CONTROL-PLANE:6443", server))
    with (folder / "config.conf").open("a") as file:
        file.write(HOST_UNTOUCHED)
    return folder


def own_config_volume(objects: list[JsonObject], folder: Path) -> Path:
    """Write the file of the ConfigMap of an overlay."""
    [config_map] = [item for item in objects if item["kind"] == "ConfigMap"]
    for name, text in config_map["data"].items():
        (folder / name).write_text(text)
    return folder


def made(path: Path) -> Path:
    """Return an empty directory."""
    path.mkdir()
    return path


def touched(path: Path) -> Path:
    """Return an empty file, as a kubelet creates it for FileOrCreate."""
    path.touch()
    return path


@pytest.mark.parametrize("folder", ["overlays/iptables", "overlays/nftables", "overlays/ipvs", "configmap"])
def test_the_api_server_accepts_the_manifests(control_plane: ControlPlane, folder: str) -> None:
    """The real API server finds no unknown or invalid field in any overlay, or in its pods."""
    text = control_plane.kubectl("kustomize", str(ROOT / "manifests" / folder))
    said = control_plane.kubectl("apply", "--dry-run=server", "--validate=strict", "--filename=-", input=text)

    assert {"created"} | {"configured", "unchanged"} >= {line.split()[1] for line in said.splitlines()}
    if folder.startswith("overlays"):
        spec = pod_spec(rendered(control_plane, folder)) | {"nodeName": "node1"}
        item = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "kube-system"}, "spec": spec}
        control_plane.kubectl("create", "--dry-run=server", "--validate=strict", "--filename=-", input=json.dumps(item))


def test_only_the_config_map_of_an_overlay_names_its_mode(manifests: dict[str, list[JsonObject]]) -> None:
    """The pods of each overlay mount the ConfigMap with its mode, under a name of its own; no flag sets another mode."""
    names = set()
    for mode, objects in manifests.items():
        [config_map] = [item for item in objects if item["kind"] == "ConfigMap"]
        names.add(config_map["metadata"]["name"])
        spec = pod_spec(objects)
        assert config_map["metadata"]["name"] == volume_of(spec, "pyproxy")["configMap"]["name"]
        assert f"mode: {mode}" == config_map["data"]["config.yaml"].splitlines()[-1]
        for container in (*spec["initContainers"], *spec["containers"]):
            assert not [word for word in container["command"] if "mode" in word]
            mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
            files = {entry["name"]: entry.get("value") for entry in container["env"]}
            assert f"{mounted['pyproxy']}/config.yaml" == files["PYPROXY_CONFIG"]
            assert f"{mounted['kube-proxy']}/config.conf" == files["KUBE_PROXY_CONFIG"]
    assert len(manifests) == len(names)


def volume_of(spec: JsonObject, name: str) -> JsonObject:
    """Return a volume of a pod spec."""
    [found] = [volume for volume in spec["volumes"] if volume["name"] == name]
    return dict(found)


def test_kubeadms_daemon_set_is_replaced(control_plane: ControlPlane, manifests: dict[str, list[JsonObject]]) -> None:
    """Applied over kubeadm's DaemonSet, the overlay replaces the image and the privileges of kube-proxy's container."""
    [wanted] = [item for item in manifests["nftables"] if item["kind"] == "DaemonSet"]
    control_plane.kubectl("delete", "--namespace=kube-system", "--ignore-not-found", "daemonset", "kube-proxy")
    control_plane.request("POST", "/apis/apps/v1/namespaces/kube-system/daemonsets", kubeadms(wanted))

    control_plane.apply(json.dumps(wanted))

    present = control_plane.request("GET", "/apis/apps/v1/namespaces/kube-system/daemonsets/kube-proxy")
    [expected], [found] = (item["spec"]["template"]["spec"]["containers"] for item in (wanted, present))
    for name in ("image", "command", "securityContext"):
        assert expected[name] == found[name]
    assert 1 == len(present["spec"]["template"]["spec"]["initContainers"])


def kubeadms(daemon_set: JsonObject) -> JsonObject:
    """Return the DaemonSet as kubeadm 1.37 creates it."""
    found: JsonObject = json.loads(json.dumps(daemon_set))
    pod = found["spec"]["template"]["spec"]
    del pod["initContainers"]
    [container] = pod["containers"]
    container["image"] = "registry.k8s.io/kube-proxy:v1.37.2"
    container["command"].insert(1, "--config=/var/lib/kube-proxy/config.conf")
    pod["volumes"] = [volume for volume in pod["volumes"] if volume["name"] not in {"pyproxy", "run"}]
    container["volumeMounts"] = [
        mount for mount in container["volumeMounts"] if mount["name"] not in {"pyproxy", "run"}
    ]
    container["securityContext"] = {"privileged": True}
    container["env"] = [{"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}]
    return found


def test_services_answer(mode: str, manifests: dict[str, list[JsonObject]], node: Node, lab: Lab) -> None:
    """After the init container has run, an agent with two capabilities and a read-only /proc/sys programs Services.

    Commands in its container use its configuration without any flag.
    """
    pod = pod_spec(manifests[mode])
    [prepare], [agent] = pod["initContainers"], pod["containers"]
    run_to_end(node, prepare)
    assert answer(lab) is None
    with Container(node, agent) as container:
        wait_until(lambda: answer(lab) == "pod1-1", container.log.name, timeout_seconds=PATIENCE_SECONDS)
        status = container.status()
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            wait_until(partial(is_healthy, lab, agent, probe), probe, timeout_seconds=PATIENCE_SECONDS)

        assert ["0000000000003000"] * 3 == [status[name] for name in ("CapPrm", "CapEff", "CapBnd")]
        assert "1" == status["NoNewPrivs"]
        complaints = [line for line in container.log.read_text().splitlines() if line[:1] in "WEF"]
        assert [] == complaints
        assert int(status["VmRSS"].split()[0]) < 60_000  # kB
        assert f"configuration: {mode} mode" in container.run("pyproxy", "check-config")
        assert "10.244.0.0/16" in container.run("pyproxy", "check-config")  # from the ConfigMap kube-proxy
        assert "default/web" in container.run("pyproxy", "dump-rules", "--live")
        control_socket = node.volumes["run"] / "control.sock"
        listed = node.host.run(PYPROXY, "services", f"--control-socket={control_socket}", "default/web", "-o", "json")
        assert {("ok", "programmed")} == {(item["state"], item["sync"]) for item in json.loads(listed)["items"]}


def is_healthy(lab: Lab, container: JsonObject, probe: str) -> bool:
    """Return whether a probe of the node succeeds, sent as by its kubelet from the node to its own address."""
    host = lab["node1"]
    request = container[probe]["httpGet"]
    port = {port["name"]: port["containerPort"] for port in container["ports"]}[request["port"]]
    found = get_inside(host.namespace.name, str(host.ipv4), port, request["path"])
    return found is not None and found.status == HTTPStatus.OK


def answer(lab: Lab) -> str | None:
    """Return the server that answers for the Service."""
    [outcome] = lab.client_pod.probe(tcp("10.96.0.10", 80, timeout_seconds=1.0))
    return outcome.server


def test_the_image_is_slim(rootfs: Path) -> None:
    """The image has no compiler, no pip and no models of the kubernetes package, and adds little to its base."""
    packages = rootfs / "opt/pyproxy/lib/python3.11/site-packages"

    assert not list((rootfs / "usr/bin").glob("*gcc*"))
    assert not list(rootfs.glob("**/site-packages/pip"))
    assert not list(rootfs.glob("**/ensurepip"))
    assert ["__init__.py"] == [path.name for path in (packages / "kubernetes/client/models").glob("*.py")]
    assert size_bytes(rootfs) < 170_000_000


def test_the_image_says_where_it_comes_from(rootfs: Path) -> None:
    """Labels and metrics have the version and the commit."""
    build = json.loads((rootfs / "opt/pyproxy/lib/python3.11/site-packages/pyproxy/build.json").read_text())

    assert {"gitCommit": GIT_COMMIT, "buildDate": "1970-01-01T00:00:01Z"} == build
    found = {name.removeprefix("org.opencontainers.image."): value for name, value in labels(built_image()).items()}
    assert (__version__, GIT_COMMIT, "1970-01-01T00:00:01Z") == (found["version"], found["revision"], found["created"])
    assert {"title", "description", "source", "licenses", "base.name"} <= found.keys()
