"""Measures pyproxy against kube-proxy: `python -m tests.bench.kube_proxy --help`, or `make bench`.

The IPVS mode needs a kernel that has it: `python -m tests.guest --seconds 3600 .venv/bin/python -m tests.bench.kube_proxy
--backends ipvs-legacy`. Both follow the same API server, in alternating runs and one at a time, each in a network
namespace of its own. Only the ratios are comparable: absolute times depend on the machine. For each run it measures:

start         from exec to the last rule of all Services
visible       from sending the replacement of an endpoint to the first connection that the new endpoint accepts
api           the API server's part of that: until it confirms the change
cpu/change    of the process and the programs that it ran, for one such change, including the idle time after it
idle          CPU time in ten seconds without changes
rss, peak     resident memory after the changes, and its maximum, without that of the programs that it ran
"""

import argparse
import compileall
import json
import os
import statistics
import sys
import tempfile
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import pyproxy
from tests.cluster.agent import Agent
from tests.cluster.api import JsonObject
from tests.cluster.controlplane import ControlPlane
from tests.cluster.kubeproxy import Backend, KubeProxy
from tests.cluster.namespace import fresh_namespace
from tests.cluster.process import Process

from .kernel_watch import Target, watch
from .probe import Probe, probe

NODE = "node-1"
PORT = 8080
FLAGS = ("--cluster-cidr=10.244.0.0/16",)
SLICES = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
_SETTLE_SECONDS = 3.0
"""Longer than kube-proxy's shortest time between two syncs, 1 s, and whatever either does after a sync."""
_QUIET_SHARE = 0.1
"""Of a CPU: a process that uses less has done its work, even on a machine where a sync takes many seconds."""
_IDLE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Sample:
    """The result of one run of one program; times in seconds, memory in MB."""

    start: float
    start_cpu: float
    visible: list[float]
    api: list[float]
    change_cpu: float
    idle: float
    rss: float
    peak: float


def service_ip(number: int) -> str:
    """Return the cluster IP of a Service."""
    return f"10.96.{1 + number // 250}.{number % 250 + 1}"


def service(number: int) -> JsonObject:
    """Return a Service with one port, as the API server keeps it."""
    ip = service_ip(number)
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(f"web-{number}", number),
        "spec": {
            "type": "ClusterIP",
            "clusterIP": ip,
            "clusterIPs": [ip],
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "internalTrafficPolicy": "Cluster",
            "sessionAffinity": "None",
            "ports": [{"port": 80, "protocol": "TCP", "targetPort": PORT}],
        },
    }


def endpoint_slice(number: int, ips: Sequence[str]) -> JsonObject:
    """Return the EndpointSlice of a Service."""
    labels = {"kubernetes.io/service-name": f"web-{number}"}
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {**_metadata(f"web-{number}-1", number), "labels": labels},
        "addressType": "IPv4",
        "ports": [{"name": "", "protocol": "TCP", "port": PORT}],
        "endpoints": [{"addresses": [ip], "conditions": {"ready": True}} for ip in ips],
    }


def _metadata(name: str, number: int) -> JsonObject:
    created = "2026-01-01T00:00:00Z"
    return {"name": name, "namespace": "default", "uid": str(uuid.UUID(int=number)), "creationTimestamp": created}


def endpoint_ips(number: int, count: int) -> list[str]:
    """Return the endpoints of a Service; no other Service has them."""
    return [f"10.{200 + which}.{number // 250}.{number % 250 + 1}" for which in range(count)]


class Bench:
    """A cluster of so many Services, and runs of both programs in it."""

    def __init__(self, control_plane: ControlPlane, services: int, endpoints: int, changes: int) -> None:
        self._control_plane = control_plane
        self._services = services
        self._endpoints = endpoints
        self._probed = services // 2
        self._probes = [f"10.250.250.{1 + number}" for number in range(changes + 1)]
        """The one endpoint that the probed Service has first, and those that it gets after it."""

    def fill(self) -> None:
        """Make the Node and the objects; these past the API server, which would take minutes."""
        self._control_plane.create_node(NODE, ["192.0.2.11"], pod_cidrs=["10.244.0.0/24"])
        for number in range(self._services):
            self._control_plane.store(f"services/specs/default/web-{number}", service(number))
            slice_ = endpoint_slice(number, endpoint_ips(number, self._endpoints))
            self._control_plane.store(f"endpointslices/default/web-{number}-1", slice_)

    def run(self, program: str, backend: Backend) -> Sample:
        """Run one of the programs once, from its start with no rules."""
        with ExitStack() as stack:
            stack.callback(self._restore)
            namespace = stack.enter_context(fresh_namespace())
            seen = stack.enter_context(watch(namespace, backend))
            client = stack.enter_context(probe(namespace, (service_ip(self._probed), 80), self._probes, PORT))
            started = time.monotonic()
            process = self._started(program, namespace, backend, stack)
            start = seen.all_there(self._targets()) - started
            start_cpu = process.cpu_seconds()
            _settle(process)
            first, *others = self._probes
            self._change(client, process, first)
            before = process.cpu_seconds()
            changes = [self._change(client, process, ip) for ip in others]
            changed = process.cpu_seconds()
            time.sleep(_IDLE_SECONDS)
            return Sample(
                start=start,
                start_cpu=start_cpu,
                visible=[visible for visible, _ in changes],
                api=[api for _, api in changes],
                change_cpu=(changed - before) / len(others),
                idle=process.cpu_seconds() - changed,
                rss=process.resident_bytes() / 1e6,
                peak=process.peak_bytes() / 1e6,
            )

    def _started(self, program: str, namespace: str, backend: Backend, stack: ExitStack) -> Process:
        if program == "pyproxy":
            agent = Agent(self._control_plane, namespace, node=NODE, backend=backend, flags=FLAGS)
            return stack.enter_context(agent).process
        proxy = KubeProxy(self._control_plane, namespace, node=NODE, backend=backend, flags=FLAGS)
        return stack.enter_context(proxy).process

    def _restore(self) -> None:
        """Undo the changes of a run."""
        self._patch(endpoint_ips(self._probed, self._endpoints))

    def _targets(self) -> list[Target]:
        return [
            Target(service_ip(number), ip, PORT)
            for number in range(self._services)
            for ip in endpoint_ips(number, self._endpoints)
        ]

    def _change(self, client: Probe, process: Process, ip: str) -> tuple[float, float]:
        """Give the probed Service one endpoint in place of another, and return when it answered and when the API server did."""
        with client.until_answered_by(ip) as answered:
            sent = time.monotonic()
            self._patch([ip])
            api = time.monotonic() - sent
            took = answered.result() - sent
        _settle(process)
        return took, api

    def _patch(self, ips: Sequence[str]) -> None:
        endpoints = endpoint_slice(self._probed, ips)["endpoints"]
        self._control_plane.request("PATCH", f"{SLICES}/web-{self._probed}-1", {"endpoints": endpoints})


def _settle(process: Process) -> None:
    """Wait until a process has done what it had to do."""
    before = float("-inf")
    while process.cpu_seconds() - before > _QUIET_SHARE * _SETTLE_SECONDS:
        before = process.cpu_seconds()
        time.sleep(_SETTLE_SECONDS)


def report(samples: dict[tuple[Backend, str], list[Sample]], write: Callable[[str], object]) -> None:
    """Write a table: medians, with the lowest and highest beside them, and the ratio of the medians."""
    columns: dict[str, Callable[[Sample], Iterable[float]]] = {
        "start s": lambda sample: [sample.start],
        "start cpu s": lambda sample: [sample.start_cpu],
        "visible ms": lambda sample: [1000 * seconds for seconds in sample.visible],
        "api ms": lambda sample: [1000 * seconds for seconds in sample.api],
        "cpu/change ms": lambda sample: [1000 * sample.change_cpu],
        "idle cpu ms": lambda sample: [1000 * sample.idle],
        "rss MB": lambda sample: [sample.rss],
        "peak MB": lambda sample: [sample.peak],
    }
    for backend in dict.fromkeys(backend for backend, _ in samples):
        write(f"{backend:18}{'kube-proxy':>26}{'pyproxy':>26}{'ratio':>8}\n")
        for title, pick in columns.items():
            values = [
                [value for sample in samples.get((backend, program), ()) for value in pick(sample)]
                for program in ("kube-proxy", "pyproxy")
            ]
            cells = "".join(f"{_spread(found):>26}" for found in values)
            both = all(values) and statistics.median(values[0]) > 0
            ratio = f"{statistics.median(values[1]) / statistics.median(values[0]):8.2f}" if both else ""
            write(f"  {title:16}{cells}{ratio}\n")


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{statistics.median(values):.3g} ({min(values):.3g} … {max(values):.3g})"


def main() -> None:
    """Measure, and write the table and, with ``--json``, all samples."""
    asked = _arguments()
    compileall.compile_dir(pyproxy.__path__[0], quiet=1)  # as an installer does
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    samples: dict[tuple[Backend, str], list[Sample]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder, ControlPlane() as control_plane:
        os.environ["XTABLES_LOCKFILE"] = str(Path(folder, "xtables.lock"))
        bench = Bench(control_plane, asked.services, asked.endpoints, asked.changes)
        bench.fill()
        for number in range(asked.runs):
            for backend in asked.backends:
                for program in asked.programs:
                    sample = bench.run(program, backend)
                    samples[backend, program].append(sample)
                    sys.stderr.write(f"{number} {backend} {program}: {sample}\n")
    sys.stdout.write(f"{asked.services} Services x {asked.endpoints} endpoints, {asked.runs} runs\n")
    report(samples, sys.stdout.write)
    if asked.json:
        rows = [(backend, program, [*map(asdict, found)]) for (backend, program), found in samples.items()]
        Path(asked.json).write_text(json.dumps(rows, indent=1))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.kube_proxy", description=(__doc__ or "").partition(":")[0]
    )
    parser.add_argument("--services", type=int, default=1000)
    parser.add_argument("--endpoints", type=int, default=3, help="of each Service")
    parser.add_argument("--runs", type=int, default=3, help="of each program in each mode")
    parser.add_argument("--changes", type=int, default=6, help="of one endpoint, in each run")
    parser.add_argument("--backends", nargs="+", default=["iptables-legacy", "iptables-nft"], choices=get_args(Backend))
    parser.add_argument("--programs", nargs="+", default=["kube-proxy", "pyproxy"], choices=["kube-proxy", "pyproxy"])
    parser.add_argument("--json", metavar="FILE", help="write all samples there")
    return parser.parse_args()


if __name__ == "__main__":
    main()
