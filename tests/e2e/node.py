"""One node: a containerd and a kubelet in namespaces of their own (`node.sh`), and what they are configured with."""

import json
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

from tests.cluster.process import ClusterError, Process
from tests.lab.waiting import wait_until

from .network import NodeNetwork

_START_SECONDS = 60.0
_CNI_PROGRAMS = "/usr/lib/cni"
CLUSTER_DNS = "10.96.0.10"


class Node:
    """A node that runs until it is stopped.

    Args:
        network: its names and addresses.
        state: the folder of the cluster.
        programs: folders with the node's programs.
        kubeconfig: the kubelet's.
    """

    def __init__(self, network: NodeNetwork, state: Path, programs: Iterable[Path], kubeconfig: str) -> None:
        self.network = network
        self.directory = state / network.name
        for name in ("log", "containerd"):
            (self.directory / name).mkdir(parents=True)
        (self.directory / "kubeconfig").write_text(kubeconfig)
        (self.directory / "cni.conflist").write_text(json.dumps(_network_plugins(network)))
        (self.directory / "containerd.toml").write_text(_containerd_configuration(self.directory))
        (self.directory / "kubelet.yaml").write_text(json.dumps(_kubelet_configuration(network, self.directory)))
        (self.directory / "resolv.conf").write_text(f"nameserver {CLUSTER_DNS}\n")
        self._programs = ":".join(map(str, programs))
        self._process: Process | None = None

    def start(self) -> None:
        """Start the node; it registers itself."""
        _create_cgroups(self.network.namespace)
        script = Path(__file__).with_name("node.sh")
        self._process = Process(
            [
                *("unshare", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc"),
                *("--propagation", "private", "--", str(script), self.network.name, ",".join(self.network.addresses)),
                *(str(self.directory), self._programs, self.network.zone),
            ],
            log=self.directory / "log" / "node.log",
            namespace=self.network.namespace,
        )
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        self._process.wait_until(
            lambda: bool(children.read_text()), "its first process", timeout_seconds=_START_SECONDS
        )
        self._init = int(children.read_text())

    def stop(self) -> None:
        """Kill all processes of the node; its mounts and its PID namespace end with them."""
        if self._process is not None:
            self._process.kill()
            self._process = None
        wait_until(
            lambda: remove_cgroups(self.network.namespace),
            f"cgroups of {self.network.name}",
            timeout_seconds=_START_SECONDS,
        )

    def command(self, *command: str) -> list[str]:
        """Return a command line that runs a command on the node, in all of its namespaces."""
        namespaces = ("--mount", "--net", "--pid", "--uts", "--ipc")
        path = f"PATH={self._programs}:{os.environ['PATH']}"
        return ["nsenter", f"--target={self._init}", *namespaces, "--", "env", path, *command]

    def run(self, *command: str) -> str:
        """Run a command on the node, and return its output.

        Raises:
            ClusterError: it failed; the message has its error output.
        """
        result = subprocess.run(self.command(*command), capture_output=True, text=True, check=False)
        if result.returncode:
            message = f"{self.network.name}: {' '.join(command)}: exit {result.returncode}: {result.stderr.strip()}"
            raise ClusterError(message)
        return result.stdout


def cgroup_hierarchies() -> list[Path]:
    """Return the mount points of cgroup v1 hierarchies."""
    lines = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    return [Path(words[1]) for words in lines if words[2] == "cgroup"]


def _create_cgroups(name: str) -> None:
    for hierarchy in cgroup_hierarchies():
        group = hierarchy / name
        group.mkdir(exist_ok=True)
        if (group / "cpuset.cpus").exists():  # a new group has none, and then no process can join it
            for file in ("cpuset.cpus", "cpuset.mems"):
                (group / file).write_text((hierarchy / file).read_text())
            (group / "cgroup.clone_children").write_text("1")


def remove_cgroups(name: str) -> bool:
    """Remove the cgroups of a node; return False if one of them still has processes."""
    groups = [hierarchy / name for hierarchy in (*cgroup_hierarchies(), Path("/sys/fs/cgroup/unified"))]
    for group in groups:
        for path in sorted((path for path in group.rglob("*") if path.is_dir()), reverse=True):
            _try_to_remove(path)
        _try_to_remove(group)
    return not any(group.exists() for group in groups)


def _try_to_remove(group: Path) -> None:
    try:
        group.rmdir()
    except OSError:  # busy: processes end asynchronously
        return


def _network_plugins(network: NodeNetwork) -> dict[str, object]:
    """Return the CNI configuration: a bridge for the pods, and host ports."""
    ranges = [[{"subnet": subnet}] for subnet in network.pod_cidrs]
    bridge = {"type": "bridge", "bridge": "cni0", "isDefaultGateway": True, "hairpinMode": True, "ipMasq": False}
    addresses = {"ipam": {"type": "host-local", "dataDir": "/var/lib/cni/networks", "ranges": ranges}}
    ports = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "1.0.0", "name": "e2e", "plugins": [bridge | addresses, ports]}


def _containerd_configuration(directory: Path) -> str:
    return f"""\
version = 3
root = "{directory}/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.cri.v1.runtime"]
  # A container cannot lower its score if this machine's root lacks CAP_SYS_RESOURCE.
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["{_CNI_PROGRAMS}"]
    conf_dir = "/etc/cni/net.d"
[plugins."io.containerd.internal.v1.opt"]
  path = "{directory}/opt"
[plugins."io.containerd.nri.v1.nri"]
  disable = true
"""


def _kubelet_configuration(network: NodeNetwork, directory: Path) -> dict[str, object]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "failCgroupV1": False,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{network.namespace}",
        "enforceNodeAllocatable": [],
        "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
        "authorization": {"mode": "AlwaysAllow"},
        "clusterDNS": [CLUSTER_DNS],
        "clusterDomain": "cluster.local",
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "resolvConf": str(directory / "resolv.conf"),
        "failSwapOn": False,
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "2%", "imagefs.available": "2%"},
    }
