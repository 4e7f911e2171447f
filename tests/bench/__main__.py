"""Measures pyproxy next to kube-proxy: ``make bench``, or ``python -m tests.bench --help`` for parts of it.

Design:

- Both programs follow the same kube-apiserver and etcd, in alternating runs and one at a time, so that both see the same
  machine; each run begins in a new network namespace without rules. etcd's files are on tmpfs. The API server runs in
  a namespace of its own and each node reaches it over a veth pair (`cluster`), whose counters show what an agent receives.
- A run has phases (`run`), which can be selected. A reply of a new endpoint (`probe`) or the kernel's change counters
  (`kernel_watch`) show when something is programmed, never the program itself. Changes are sent by a separate process
  (`writer`) where they are many.
- A program that has not programmed everything within the limit is reported as such and not repeated in that case.
- What an agent costs the API server per change is measured with ten agents at once (`fleet`).
- The latency of new connections is measured separately (`first_packet`), with the rules of both programs and with few and
  many Services in turn; the programs are stopped meanwhile.
- Every run becomes a record (`results`) in a JSON file, which is written after each run. So a long benchmark can run in
  parts, and ``--merge`` combines the files. Tables, plots and the check of the budgets (`report`, `budgets`) are made from
  the records only.

Only ratios are comparable between machines. IPVS is not in the default modes, because its kernel is the guest, in which
kube-proxy takes minutes for each start: ``python -m tests.guest --seconds 3600 .venv/bin/python -m tests.bench --modes
ipvs-legacy --sizes 1000``.
"""

import argparse
import compileall
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple, get_args

import pyproxy
from tests.cluster.controlplane import ControlPlane
from tests.cluster.kubeproxy import Backend
from tests.cluster.namespace import fresh_namespace
from tests.cluster.process import binary

from .budgets import check
from .cluster import Cluster, Shape
from .first_packet import measure_first_packets
from .fleet import AGENTS, measure_fleet
from .report import markdown, write, write_docs
from .results import FEW, PROGRAMS, Program, Record, Results, load
from .run import IN_LARGE_SERVICES, MOST_ENDPOINTS, PHASES, Run, measure_idle_rate

ROOT = Path(__file__).parents[2]
_TMPFS = Path("/dev/shm")  # noqa: S108  # directories in it have names of their own
_FLEET_SERVICES = 1000
"""At most, so that the agents of a fleet start soon."""
_DEFAULT_MODES: tuple[Backend, ...] = ("nftables", "iptables-legacy", "iptables-nft")


class Scope(NamedTuple):
    """What is measured by default."""

    sizes: tuple[str, ...]
    first_packet: str


SCOPES = {
    "small": Scope(("100x3",), "100x3"),
    "normal": Scope(("1000x3", "10000x3", "5000x50", "1x5000"), "30000x3"),
    "full": Scope(("1000x3", "10000x3", "50000x3", "5000x50", "1x5000"), "30000x3"),
}


class Bench:
    """Runs that were requested on the command line, and their results."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self._asked = asked
        self._began = time.monotonic()
        self.results = Results(machine())

    def run(self) -> None:
        """Perform all runs."""
        for size in self._asked.sizes:
            with cluster_of(Shape.parse(size)) as cluster:
                self._say(f"{size}: the API server has all objects")
                self._runs(cluster)
        if self._asked.first_packet != "none":
            self._first_packets(Shape.parse(self._asked.first_packet))

    def _runs(self, cluster: Cluster) -> None:
        is_large = cluster.shape.endpoints > MOST_ENDPOINTS
        phases = [each for each in self._asked.phases if each in IN_LARGE_SERVICES or not is_large]
        idle_rate = measure_idle_rate(cluster)
        not_done: set[tuple[Backend, Program]] = set()
        cases = [
            (repeat, mode, program)
            for repeat in range(1, self._asked.repeats + 1)
            for mode in self._asked.modes
            for program in self._asked.programs
            if phases != ["fleet"]
        ]
        for number, (repeat, mode, program) in enumerate(cases, 1):
            if (mode, program) in not_done:
                continue
            name = f"{cluster.shape} {number}/{len(cases)} {mode} {program} run {repeat}"
            self._say(f"{name}: start")
            before = os.getloadavg()[0]
            run = Run(
                cluster,
                program,
                mode,
                phases=phases,
                changes=self._asked.changes,
                limit_seconds=self._asked.limit,
                api_idle_rate=idle_rate,
            )
            run.perform(partial(self._say_of, name))
            if run.not_done:
                not_done.add((mode, program))
                self._say(f"{name}: {run.not_done} not done within {self._asked.limit} s")
            self._say(f"{name}: start {run.values.get('start', [])}, changes {run.values.get('change', [])}")
            self._add(
                Record(str(cluster.shape), mode, program, dict(run.values), run.not_done, self._asked.limit, before)
            )

        if "fleet" in phases and cluster.shape.services <= _FLEET_SERVICES:
            self._fleets(cluster, idle_rate)

    def _fleets(self, cluster: Cluster, idle_rate: float) -> None:
        mode = self._asked.modes[0]  # what agents request does not depend on it
        for repeat in range(1, self._asked.repeats + 1):
            for program in self._asked.programs:
                self._say(f"{cluster.shape} {AGENTS} agents of {program}, run {repeat}")
                before = os.getloadavg()[0]
                values = measure_fleet(cluster, program, mode, idle_rate, self._asked.limit)
                self._add(Record(str(cluster.shape), mode, program, values, "", self._asked.limit, before))

    def _first_packets(self, shape: Shape) -> None:
        with cluster_of(Shape.parse(FEW)) as few, cluster_of(shape) as many:
            for mode in self._asked.modes:
                self._add(
                    *measure_first_packets(
                        (few, many),
                        mode,
                        self._asked.programs,
                        rounds=max(5, self._asked.repeats),
                        limit_seconds=self._asked.limit,
                        report=partial(self._say_of, f"new connections, {mode}"),
                    )
                )

    def _add(self, *records: Record) -> None:
        self.results.records.extend(records)
        self._asked.output.mkdir(parents=True, exist_ok=True)
        self.results.save(self._asked.output / "results.json")

    def _say_of(self, name: str, text: str) -> None:
        self._say(f"{name}: {text}")

    def _say(self, text: str) -> None:
        sys.stderr.write(f"{time.monotonic() - self._began:6.0f} s  load {os.getloadavg()[0]:4.1f}  {text}\n")


@contextmanager
def cluster_of(shape: Shape) -> Iterator[Cluster]:
    """Provide a control plane in a namespace of its own, with the objects of a cluster."""
    # The first address is that of its own loopback only; nodes connect to the address of their veth pair.
    with fresh_namespace() as namespace, ControlPlane(namespace=namespace, flags=["--bind-address=0.0.0.0"]) as made:
        cluster = Cluster(made, shape)
        cluster.fill()
        yield cluster


def machine() -> dict[str, str]:
    """Return the machine and the versions of the programs."""

    def first_line(*command: str) -> str:
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        return done.stdout.partition("\n")[0].strip()

    processors = Path("/proc/cpuinfo").read_text()
    models = [line.partition(":")[2].strip() for line in processors.splitlines() if line.startswith("model name")]
    memory = int(Path("/proc/meminfo").read_text().split()[1]) / 1e6
    return {
        "Machine": f"{os.cpu_count()} CPUs ({models[0] if models else platform.machine()}), {memory:.0f} GB of memory",
        "Kernel": f"Linux {platform.release()}",
        "Python": platform.python_version(),
        "pyproxy": f"{pyproxy.__version__}, commit {first_line('git', '-C', str(ROOT), 'log', '-1', '--format=%h', 'pyproxy')}",
        "kube-proxy and API server": first_line(binary("kube-proxy"), "--version"),
        "Tools": f"{first_line('iptables', '--version')}, {first_line('nft', '--version')}",
    }


def main() -> None:
    """Measure, or merge earlier results, and write the report."""
    asked = _arguments()
    if asked.merge:
        results = load(asked.merge)
    else:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that namespaces are removed
        compileall.compile_dir(pyproxy.__path__[0], quiet=1)  # as an installer does
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        if _TMPFS.is_dir():
            tempfile.tempdir = str(_TMPFS)
        with tempfile.TemporaryDirectory() as folder:
            # The default lock file would be shared with programs in other namespaces.
            os.environ["XTABLES_LOCKFILE"] = str(Path(folder, "xtables.lock"))
            bench = Bench(asked)
            bench.run()
        results = bench.results
    write(results, asked.output)
    if asked.docs:
        write_docs(results, ROOT / "docs")
    sys.stdout.write(f"{markdown(results, 2)}\n")
    missed = [each for each in check(results) if each.verdict == "missed"]
    for each in missed:
        sys.stdout.write(f"MISSED: {each.mode} {each.shape}: {each.title}: {each.measured}, limit {each.limit}\n")
    sys.stdout.write(f"{len(missed)} budgets missed; all files are in {asked.output}\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=(__doc__ or "").partition(":")[0])
    add = parser.add_argument
    add("--scope", choices=SCOPES, default="normal", help="default of --sizes and --first-packet")
    add("--sizes", nargs="*", help="numbers of Services, or of Services x endpoints, for example 1000 5000x50")
    add("--first-packet", metavar="SIZE", help="the large cluster for new connections, or none")
    add("--modes", nargs="+", default=_DEFAULT_MODES, choices=get_args(Backend))
    add("--programs", nargs="+", default=PROGRAMS, choices=PROGRAMS)
    add("--phases", nargs="+", default=(*PHASES, "fleet"), choices=(*PHASES, "fleet"))
    add("--repeats", type=int, default=5, help="runs of each program in each mode and size")
    add("--changes", type=int, default=20, help="of one endpoint, in each run")
    add("--limit", type=float, default=200.0, help="seconds for each step")
    add("--output", type=Path, default=ROOT / "build" / "bench", help="directory for tables, JSON and plots")
    add("--merge", type=Path, nargs="+", metavar="FILE", help="measure nothing: combine these results")
    add("--docs", action="store_true", help="also write tables and plots to docs")
    asked = parser.parse_args()
    scope = SCOPES[asked.scope]
    asked.sizes = scope.sizes if asked.sizes is None else asked.sizes
    asked.first_packet = asked.first_packet or scope.first_packet
    return asked


if __name__ == "__main__":
    main()
