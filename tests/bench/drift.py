"""Measures drift checks and the commands that look at all rules: ``python -m tests.bench.drift [--services N] [--mode MODE]``.

An agent runs in a network namespace of its own, with Services of 3 endpoints each from a file:

check        duration of a check of both families, from the agent's metrics, and its CPU time with that of its children,
             beyond the CPU time of an idle agent
commands     time of `pyproxy services`, `pyproxy drift` and `pyproxy plan`, from start to end
"""

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.request import urlopen

from tests.packets.own_namespace import own_namespace, run

PYPROXY = str(Path(sys.executable).with_name("pyproxy"))
MODES = {
    "iptables-legacy": ("--proxy-mode=iptables", "--iptables-variant=legacy"),
    "iptables-nft": ("--proxy-mode=iptables", "--iptables-variant=nft"),
    "nftables": ("--proxy-mode=nftables",),
    "ipvs": ("--proxy-mode=ipvs", "--iptables-variant=legacy"),
}
METRICS = "http://127.0.0.1:10249/metrics"
IDLE_SECONDS = 0.05
"""CPU time in three seconds of an agent that has nothing to do."""
TICKS = os.sysconf("SC_CLK_TCK")


def write_objects(path: Path, count: int) -> None:
    """Write Services with 3 endpoints each, and the Node."""
    items: list[dict[str, Any]] = [
        {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": "node1"},
            "spec": {"podCIDR": "10.244.0.0/24", "podCIDRs": ["10.244.0.0/24"]},
            "status": {"addresses": [{"type": "InternalIP", "address": "172.18.0.11"}]},
        }
    ]
    for number in range(count):
        high, low = divmod(number, 250)
        name, ip = f"service-{number}", f"10.{96 + high // 250}.{high % 250}.{low + 1}"
        meta = {"namespace": "default", "name": name}
        spec = {"clusterIP": ip, "clusterIPs": [ip], "ports": [{"port": 80, "protocol": "TCP"}]}
        items.append({"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec})
        ips = [
            f"10.{128 + 3 * number // 62500 + pod}.{3 * number // 250 % 250}.{3 * number % 250 + pod}"
            for pod in range(3)
        ]
        items.append(
            {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {**meta, "labels": {"kubernetes.io/service-name": name}},
                "addressType": "IPv4",
                "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
                "endpoints": [{"addresses": [each], "conditions": {"ready": True}} for each in ips],
            }
        )
    path.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))


def metric(name: str) -> float:
    """Return the sum of a metric over its labels."""
    with urlopen(METRICS, timeout=60) as answer:
        text = answer.read().decode()
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process and of its children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / TICKS


def children_seconds() -> float:
    """Return the CPU time of all processes that this one has started and that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def settle(pid: int) -> None:
    """Wait until an agent without checks has nothing to do."""
    while True:
        before = cpu_seconds(pid)
        time.sleep(3)
        if cpu_seconds(pid) - before < IDLE_SECONDS:
            return


@contextmanager
def agent(folder: Path, words: Sequence[str], interval: str) -> Iterator[int]:
    """Run an agent through its first sync; yield its process ID."""
    socket = f"--control-socket={folder / 'control'}"
    servers = ("--metrics-bind-address=127.0.0.1:10249", "--healthz-bind-address=", "--conntrack-max-per-core=0")
    command = [PYPROXY, "run", *words, *servers, socket, f"--drift-check-interval={interval}", "-v=2"]
    with (folder / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            while "first sync done" not in (folder / "log").read_text():
                time.sleep(0.1)
            yield process.pid
        finally:
            process.terminate()


def measure(name: str, services: int, checks: int) -> None:
    """Print the figures of a mode."""
    with TemporaryDirectory() as directory, own_namespace():
        folder = Path(directory)
        run("ip", "link", "set", "lo", "up")
        run("ip", "address", "add", "172.18.0.11/32", "dev", "lo")
        write_objects(folder / "objects.json", services)
        words = (
            f"--manifests={folder / 'objects.json'}",
            "--hostname-override=node1",
            "--cluster-cidr=10.244.0.0/16",
            *MODES[name],
        )
        with agent(folder, words, "0") as pid:
            settle(pid)
            before, started = cpu_seconds(pid), time.monotonic()
            time.sleep(10)
            idle = (cpu_seconds(pid) - before) / (time.monotonic() - started)
            for command in (("services",), ("drift",), ("drift", *words), ("plan", *words)):
                own = [PYPROXY, *command, f"--control-socket={folder / 'control'}"]
                began, used, agents = time.monotonic(), children_seconds(), cpu_seconds(pid)
                done = subprocess.run(own, capture_output=True, text=True, check=False)
                cpu = children_seconds() - used, cpu_seconds(pid) - agents
                what = " ".join((command[0], "from files" if len(command) > 1 else "from the agent"))
                print(
                    f"{name:16} {services:6} {what:22} {time.monotonic() - began:.2f} s, CPU {cpu[0]:.2f} s, of the agent {cpu[1]:.2f} s, exit code {done.returncode}",
                    flush=True,
                )
        began = time.monotonic()
        used = children_seconds()
        subprocess.run(
            [PYPROXY, "services", f"--control-socket={folder / 'control'}"], capture_output=True, check=False
        )
        used = children_seconds() - used
        print(
            f"{name:16} {services:6} services from kernel   {time.monotonic() - began:.2f} s, CPU {used:.2f} s",
            flush=True,
        )
        with agent(folder, words, "1s") as pid:
            count = "pyproxy_drift_check_duration_seconds_count"
            while metric(count) < 2:
                time.sleep(0.1)
            first, total, before, started = (
                metric(count),
                metric(count.replace("count", "sum")),
                cpu_seconds(pid),
                time.monotonic(),
            )
            # A scrape takes CPU time of the agent, so there are few.
            while metric(count) < first + 2 * checks:
                time.sleep(5)
            number = (metric(count) - first) / 2
            seconds = (metric(count.replace("count", "sum")) - total) / number
            per_check = (cpu_seconds(pid) - before - idle * (time.monotonic() - started)) / number
            print(
                f"{name:16} {services:6} check: {1000 * seconds:.0f} ms, CPU {1000 * per_check:.0f} ms, idle CPU {1000 * idle:.1f} ms/s, of {number:.0f}",
                flush=True,
            )


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", action="append", choices=MODES)
    parser.add_argument("--services", type=int, action="append")
    parser.add_argument("--checks", type=int, default=5)
    arguments = parser.parse_args()
    for services in arguments.services or [1_000, 10_000]:
        for mode in arguments.mode or [*MODES][:3]:
            measure(mode, services, arguments.checks)


if __name__ == "__main__":
    main()
