"""A Kubernetes cluster of three real nodes on this machine: control plane, kubelets, containerd, DNS, and load balancers.

Nothing of it is outside its namespaces and its folder, except the cgroups of the nodes. Every process ends with the
process that has started the cluster; what a killed run has left behind is removed by the next one.
"""

import fcntl
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Self

from tests.cluster.process import ClusterError, Process
from tests.lab.waiting import wait_until

from . import network
from .build import CACHE
from .control_plane import ControlPlane
from .node import Node, remove_cgroups

STATE = Path("/var/tmp/pyproxy-e2e")  # noqa: S108  # only root can write here before the run; containerd needs a real disk
_MANIFESTS = Path(__file__).parent / "manifests"
_NODE_SECONDS = 300.0
"""Most of it is the import of images, by three nodes at once."""


class Cluster:
    """A cluster that runs until its ``with`` block ends; one at a time on a machine.

    Args:
        programs: paths by name, see `build.programs`.
        images: archives for all nodes.
        logs: folder to which the logs of all programs are copied at the end.
    """

    def __init__(self, programs: Mapping[str, Path], images: list[Path], logs: Path) -> None:
        self._programs = programs
        self._images = images
        self._logs = logs
        self._at_exit = ExitStack()

    def __enter__(self) -> Self:
        """Start everything except a proxy, and wait until all nodes are ready."""
        with ExitStack() as stack:
            lock = stack.enter_context((CACHE / "e2e.lock").open("w"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                message = f"another run has locked {lock.name}"
                raise ClusterError(message) from None
            remove_everything()
            stack.callback(remove_everything)
            stack.callback(self._keep_logs)
            STATE.mkdir(mode=0o700)
            self._share_files()
            network.create()
            self.control_plane = ControlPlane(STATE, self._programs)
            stack.callback(self.control_plane.stop)
            self.control_plane.start()
            folders = sorted({path.parent for path in self._programs.values()})
            self.nodes = [
                Node(each, STATE, folders, self.control_plane.kubeconfig_of(f"system:node:{each.name}"))
                for each in network.NODES
            ]
            for node in self.nodes:
                stack.callback(node.stop)
                node.start()
            wait_until(self._has_all_nodes, "registration of all nodes", timeout_seconds=_NODE_SECONDS, poll_seconds=1)
            for node in self.nodes:
                ranges = list(node.network.pod_cidrs)
                patch = json.dumps({"spec": {"podCIDR": ranges[0], "podCIDRs": ranges}})
                self.control_plane.kubectl("patch", "node", node.network.name, f"--patch={patch}")
            self.control_plane.kubectl("apply", f"--filename={_MANIFESTS / 'dns.yaml'}")
            self.control_plane.kubectl("wait", "--for=condition=Ready", "node", "--all", f"--timeout={_NODE_SECONDS}s")
            self._start_load_balancers(stack)
            self._at_exit = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Take everything down."""
        self._at_exit.close()

    def _has_all_nodes(self) -> bool:
        return len(self.nodes) == len(self.control_plane.get("nodes")["items"])

    def _share_files(self) -> None:
        """Put files for all nodes into the state: images, and the keys of SSH servers and their client."""
        (STATE / "images").mkdir()
        for archive in self._images:
            (STATE / "images" / archive.name).symlink_to(archive)
        (STATE / "ssh").mkdir()
        # The suite's client prefers RSA, and dropbear exits if it has agreed to that without having a key for it.
        for command in (
            ["ssh-keygen", "-N", "", "-t", "ed25519", "-f", f"{STATE}/ssh/id"],
            ["dropbearkey", "-t", "rsa", "-f", f"{STATE}/ssh/host"],
        ):
            subprocess.run(command, check=True, capture_output=True)

    def _start_load_balancers(self, stack: ExitStack) -> None:
        log = STATE / "control-plane" / "load-balancers.log"
        command = [sys.executable, "-m", "tests.e2e.load_balancers", str(self.control_plane.kubeconfig)]
        environment = {"PYTHONPATH": str(Path(__file__).parents[2])}
        process = Process(command, log=log, namespace=network.CONTROL_NAMESPACE, environment=environment)
        stack.callback(process.kill)

    def _keep_logs(self) -> None:
        shutil.rmtree(self._logs, ignore_errors=True)
        for log in STATE.glob("**/log/*.log"):
            _copy(log, self._logs / log.parent.parent.name)
        for log in STATE.glob("control-plane/*.log"):
            _copy(log, self._logs / "control-plane")


def _copy(file: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(file, folder)


def remove_everything() -> None:
    """Remove what a cluster consists of; for a run that ended regularly, only files are left to remove."""
    network.remove()
    for each in network.NODES:
        name = each.namespace
        wait_until(partial(remove_cgroups, name), f"cgroups {name}", timeout_seconds=_NODE_SECONDS)
    if STATE.exists():
        shutil.rmtree(STATE)
