"""Measures pyproxy against kube-proxy: `python -m tests.cluster.bench --help`, or `make bench`.

Both follow the same API server, in alternating runs and one at a time, each in a network namespace of its own. Only
ratios say something: absolute times are this machine's. What is measured, for each run:

start         from exec to the last rule of all Services
visible       from sending the change of one endpoint to its rule being in the kernel
cpu/change    of the process and of the programs that it ran, for one such change, idle time after it included
idle          processor time of ten seconds in which nothing happens
rss, peak     resident memory after the changes, and at its highest, without that of the programs it ran
"""

import argparse
import compileall
import json
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import pyproxy

from .agent import Agent
from .api import JsonObject
from .bench_kernel import KernelWatch
from .controlplane import ControlPlane
from .kubeproxy import Backend, KubeProxy
from .namespace import fresh_namespace
from .process import Process

NODE = "node-1"
PORT = 8080
FLAGS = ("--cluster-cidr=10.244.0.0/16",)
SERVICES = "/api/v1/namespaces/default/services"
SLICES = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
_WRITERS = 8
_SETTLE_SECONDS = 3.0
"""Longer than kube-proxy's shortest time between two syncs, 1 s, and whatever either does after a sync."""
_IDLE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Sample:
    """What one run of one program showed; times in seconds, memory in MB."""

    start: float
    start_cpu: float
    visible: list[float]
    change_cpu: float
    idle: float
    rss: float
    peak: float


def service(number: int) -> JsonObject:
    """Return a Service with one port."""
    ip = f"10.96.{1 + number // 250}.{number % 250 + 1}"
    spec = {"clusterIP": ip, "ports": [{"port": 80, "targetPort": PORT}]}
    return {"metadata": {"name": f"web-{number}"}, "spec": spec}


def endpoint_slice(number: int, ips: Sequence[str]) -> JsonObject:
    """Return its EndpointSlice."""
    return {
        "metadata": {"name": f"web-{number}-1", "labels": {"kubernetes.io/service-name": f"web-{number}"}},
        "addressType": "IPv4",
        "ports": [{"name": "", "protocol": "TCP", "port": PORT}],
        "endpoints": [{"addresses": [ip], "conditions": {"ready": True}} for ip in ips],
    }


def endpoint_ips(number: int, count: int) -> list[str]:
    """Return the endpoints of a Service, which no other has."""
    return [f"10.{200 + which}.{number // 250}.{number % 250 + 1}" for which in range(count)]


class Bench:
    """A cluster of so many Services, and runs of both programs in it."""

    def __init__(self, control_plane: ControlPlane, services: int, endpoints: int, changes: int) -> None:
        self._control_plane = control_plane
        self._services = services
        self._endpoints = endpoints
        self._changes = changes

    def fill(self) -> None:
        """Make the Node and the objects."""
        self._control_plane.create_node(NODE, ["192.0.2.11"], pod_cidrs=["10.244.0.0/24"])
        with ThreadPoolExecutor(_WRITERS) as writers:
            list(writers.map(self._create, range(self._services)))

    def _create(self, number: int) -> None:
        self._control_plane.request("POST", SERVICES, service(number))
        ips = endpoint_ips(number, self._endpoints)
        self._control_plane.request("POST", SLICES, endpoint_slice(number, ips))

    def run(self, program: str, backend: Backend) -> Sample:
        """Run one of the programs once, from its start with no rules."""
        with ExitStack() as stack:
            stack.callback(self._restore)
            namespace = stack.enter_context(fresh_namespace())
            watch = stack.enter_context(KernelWatch(namespace, backend))
            started = time.monotonic()
            process = self._started(program, namespace, backend, stack)
            start = watch.when(self._is_complete, "all rules") - started
            start_cpu = process.cpu_seconds()
            time.sleep(_SETTLE_SECONDS)
            before = process.cpu_seconds()
            visible = [self._change(watch, number) for number in range(self._changes)]
            changed = process.cpu_seconds()
            time.sleep(_IDLE_SECONDS)
            return Sample(
                start=start,
                start_cpu=start_cpu,
                visible=visible,
                change_cpu=(changed - before) / self._changes,
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
        which = self._services // 2
        endpoints = endpoint_slice(which, endpoint_ips(which, self._endpoints))["endpoints"]
        self._control_plane.request("PATCH", f"{SLICES}/web-{which}-1", {"endpoints": endpoints})

    def _is_complete(self, rules: str) -> bool:
        """Tell whether a dump has every endpoint."""
        if f"{endpoint_ips(self._services - 1, self._endpoints)[-1]}" not in rules:
            return False
        ips = (ip for number in range(self._services) for ip in endpoint_ips(number, self._endpoints))
        return all(f"{ip}:{PORT}" in rules or f"{ip} . {PORT}" in rules for ip in ips)

    def _change(self, watch: KernelWatch, number: int) -> float:
        """Add one more endpoint to a Service, and return how long it took to be seen.

        What is added shows in every program's rules at once: kube-proxy leaves rules of gone endpoints for a while, and
        the kernel's counters of legacy tables do not tell one endpoint from another in its place.
        """
        which = self._services // 2
        ips = [*endpoint_ips(which, self._endpoints), *(f"10.250.250.{1 + added}" for added in range(number + 1))]
        endpoints = endpoint_slice(which, ips)["endpoints"]
        sent = time.monotonic()
        self._control_plane.request("PATCH", f"{SLICES}/web-{which}-1", {"endpoints": endpoints})
        seen = watch.when(lambda rules: f"{ips[-1]}:" in rules or f"{ips[-1]} ." in rules, f"a rule for {ips[-1]}")
        time.sleep(_SETTLE_SECONDS)
        return seen - sent


def report(samples: dict[tuple[Backend, str], list[Sample]], write: Callable[[str], object]) -> None:
    """Write a table: medians, with the lowest and highest beside them, and the ratio of the medians."""
    columns: dict[str, Callable[[Sample], Iterable[float]]] = {
        "start s": lambda sample: [sample.start],
        "start cpu s": lambda sample: [sample.start_cpu],
        "visible ms": lambda sample: [1000 * seconds for seconds in sample.visible],
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
    """Measure, and write the table and, if asked, all samples."""
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
        prog="python -m tests.cluster.bench", description=(__doc__ or "").partition(":")[0]
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
