"""The containers of a pod, run by a real container runtime (runc) as by a kubelet, on a node of a lab.

Privileges, mounts, command and environment are those of the pod spec; nothing is added. The defaults of unprivileged
containers (read-only /proc/sys, a few capabilities) are those of containerd.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tests.cluster.process import Process
from tests.lab import Host, LabError

JsonObject = dict[str, Any]

_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
_DEFAULT_CAPABILITIES = (
    *("AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "NET_RAW"),
    *("SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT"),
)
_ALL_CAPABILITIES = (*_DEFAULT_CAPABILITIES, "NET_ADMIN", "SYS_ADMIN", "SYS_PTRACE", "DAC_READ_SEARCH", "IPC_LOCK")
"""The relevant capabilities of a privileged container, except loading modules into the kernel of the tests."""
_MASKED = ("/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/sched_debug", "/sys/firmware")
_READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


@dataclass(frozen=True, slots=True)
class Node:
    """The node on which pods run, with the files that a kubelet provides for them."""

    host: Host
    rootfs: Path
    """The root file system of the image of all containers."""
    directory: Path
    """A directory for files of the tests."""
    volumes: Mapping[str, Path]
    """The path of each volume of the pod, by name."""
    account: Path
    """The directory with the token and CA of the service account."""


class Container:
    """A container that runs until its ``with`` block ends."""

    def __init__(self, node: Node, spec: JsonObject) -> None:
        """Use a container of a pod spec."""
        self._id, self._bundle = _bundle(node, spec)
        self.log = self._bundle / "log"

    def __enter__(self) -> Self:
        """Start the container."""
        self.process = Process(_run(self._id, self._bundle), log=self.log)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the container."""
        _delete(self._id)
        self.process.stop()

    @property
    def pid(self) -> int:
        """The pid of its first process."""
        return int((self._bundle / "pid").read_text())

    def run(self, *command: str) -> str:
        """Run a command in the container, as `kubectl exec` does, and return its output."""
        return subprocess.run(
            ["runc", "exec", self._id, *command], check=True, stdout=subprocess.PIPE, text=True, timeout=60
        ).stdout

    def status(self) -> dict[str, str]:
        """Return the status of its first process, from /proc."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def run_to_end(node: Node, spec: JsonObject) -> str:
    """Run an init container and return its output; raises an error with the output if it fails."""
    name, bundle = _bundle(node, spec)
    try:
        result = subprocess.run(_run(name, bundle), capture_output=True, text=True, timeout=60, check=False)
    finally:
        _delete(name)
    if result.returncode:
        message = f"{spec['name']}: exit {result.returncode}: {result.stderr}"
        raise LabError(message)
    return result.stderr


def _bundle(node: Node, spec: JsonObject) -> tuple[str, Path]:
    """Write the configuration of a container; return its id and the directory."""
    bundle = node.directory / spec["name"]
    bundle.mkdir()
    (bundle / "config.json").write_text(json.dumps(runtime_config(node, spec)))
    return f"pyproxy-tests-{os.getpid()}-{spec['name']}", bundle


def _run(name: str, bundle: Path) -> list[str]:
    return ["runc", "run", f"--bundle={bundle}", f"--pid-file={bundle}/pid", name]


def _delete(name: str) -> None:
    subprocess.run(["runc", "delete", "--force", name], capture_output=True, check=False)


def runtime_config(node: Node, spec: JsonObject) -> JsonObject:
    """Return the OCI configuration of a container of a pod with host network."""
    security = spec.get("securityContext", {})
    privileged = security.get("privileged", False)
    capabilities = [f"CAP_{name}" for name in _capabilities(security)]
    return {
        "ociVersion": "1.0.0",
        "root": {"path": str(node.rootfs), "readonly": security.get("readOnlyRootFilesystem", False)},
        "hostname": node.host.name,
        "process": {
            "cwd": "/",
            "user": {"uid": 0, "gid": 0},
            "args": [_expanded(word, node.host.name) for word in spec["command"]],
            "env": [_PATH, *(f"{entry['name']}={_value(entry, node.host.name)}" for entry in spec["env"])],
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
            "noNewPrivileges": not security.get("allowPrivilegeEscalation", True),
        },
        "mounts": [*_system_mounts("rw" if privileged else "ro"), *_volume_mounts(node, spec)],
        "linux": {
            "namespaces": [
                *({"type": kind} for kind in ("pid", "ipc", "uts", "mount")),
                {"type": "network", "path": str(node.host.namespace.path)},
            ],
            **({} if privileged else {"maskedPaths": list(_MASKED), "readonlyPaths": list(_READ_ONLY)}),
        },
    }


def _capabilities(security: JsonObject) -> list[str]:
    if security.get("privileged", False):
        return list(_ALL_CAPABILITIES)
    wanted = security.get("capabilities", {})
    dropped = wanted.get("drop", [])
    kept = [] if "ALL" in dropped else [name for name in _DEFAULT_CAPABILITIES if name not in dropped]
    return [*kept, *wanted.get("add", [])]


def _expanded(word: str, node_name: str) -> str:
    return word.replace("$(NODE_NAME)", node_name)


def _value(entry: JsonObject, node_name: str) -> str:
    if "value" in entry:
        return str(entry["value"])
    assert "spec.nodeName" == entry["valueFrom"]["fieldRef"]["fieldPath"]
    return node_name


def _system_mounts(mode: str) -> list[JsonObject]:
    safe = ["nosuid", "noexec", "nodev"]
    return [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": safe},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=65536k"]},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": [*safe, mode]},
    ]


def _volume_mounts(node: Node, spec: JsonObject) -> list[JsonObject]:
    mounts = [
        (node.volumes[mount["name"]], mount["mountPath"], "ro" if mount.get("readOnly") else "rw")
        for mount in spec["volumeMounts"]
    ]
    return [
        {"destination": there, "type": "bind", "source": str(ours), "options": ["rbind", mode]}
        for ours, there, mode in (*mounts, (node.account, _ACCOUNT, "ro"))
    ]
