"""Measures ways to follow Services and EndpointSlices: ``python -m tests.bench.list_and_watch``.

Each way runs in a process of its own against the same real API server, in turns:

pyproxy    `pyproxy.kubeapi`: aiohttp, msgspec, streaming lists
informer   `kubernetes.informer.SharedInformer`, a thread for each kind
aio        `kubernetes.aio`: one list, then `Watch.stream`, on an event loop

``list`` is the time from the first request to the last object, ``cpu`` the processor time of the process for it, imports
included, ``change`` the processor time for each changed EndpointSlice that its watch delivers.
"""

# mypy: allow-untyped-calls

import argparse
import asyncio
import json
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from tests.bench.cluster import Cluster, Shape, endpoint_slice
from tests.cluster.controlplane import ControlPlane
from tests.cluster.objects import SLICES

WAYS = ("pyproxy", "informer", "aio")
CHANGES = 200
_runs: list[str] = []
"""The runs so far, of all ways."""


def cpu_seconds() -> float:
    """Return the processor time of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class Progress:
    """Reports two moments: all objects are listed, and all changes have arrived."""

    def __init__(self, objects: int) -> None:
        self._objects = objects
        self._began = time.monotonic()
        self._cpu = 0.0
        self._changes = 0
        self.is_listed = False

    def listed(self, count: int) -> None:
        """Report the end of the list, once that many objects are known."""
        if count < self._objects or self.is_listed:
            return
        self.is_listed = True
        self._cpu = cpu_seconds()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
        self._print({"list": time.monotonic() - self._began, "cpu": self._cpu, "peak": peak})
        self._cpu = cpu_seconds()

    def changed(self) -> None:
        """Count a change; report the processor time for each after the last one."""
        self._changes += 1
        if self._changes == CHANGES:
            self._print({"change": (cpu_seconds() - self._cpu) / CHANGES})

    @staticmethod
    def _print(values: dict[str, float]) -> None:
        print(json.dumps(values), flush=True)


def follow_by_pyproxy(kubeconfig: str, objects: int) -> None:
    """Follow with the code of the agent."""
    from pyproxy.kubeapi.access import AccessSettings  # noqa: PLC0415  # each process imports its own way only
    from pyproxy.kubeapi.api import ApiSource, Store, Watched  # noqa: PLC0415
    from pyproxy.kubeapi.load_access import load_access  # noqa: PLC0415
    from pyproxy.model.change import ObjectChange, Put, Replaced  # noqa: PLC0415

    async def follow() -> None:
        progress, known = Progress(objects), 0

        def deliver(change: ObjectChange) -> None:
            nonlocal known
            if isinstance(change, Replaced):
                known += len(change.objects)
                progress.listed(known)
            elif isinstance(change, Put) and progress.is_listed:
                progress.changed()

        async def no() -> bool:
            return False

        watched = Watched(node_name="node-1", service_cidrs=no())
        settings = AccessSettings(kubeconfig=kubeconfig)
        await ApiSource(lambda: load_access(settings), watched, Store(deliver=deliver)).run()

    asyncio.run(follow())


def follow_by_informer(kubeconfig: str, objects: int) -> None:
    """Follow with the informer of the package."""
    from kubernetes import client, config  # noqa: PLC0415
    from kubernetes.informer import SharedInformer  # noqa: PLC0415

    config.load_kube_config(kubeconfig)
    progress, lock, known = Progress(objects), threading.Lock(), 0

    def added(_: object) -> None:
        nonlocal known
        with lock:
            known += 1
            progress.listed(known)

    def modified(_: object) -> None:
        with lock:
            if progress.is_listed:
                progress.changed()

    lists: list[Callable[..., Any]] = [
        client.CoreV1Api().list_service_for_all_namespaces,
        client.DiscoveryV1Api().list_endpoint_slice_for_all_namespaces,
    ]
    for each in lists:
        informer = SharedInformer(each)
        informer.add_event_handler("ADDED", added)
        informer.add_event_handler("MODIFIED", modified)
        informer.start()
    threading.Event().wait()


def follow_by_aio(kubeconfig: str, objects: int) -> None:
    """Follow with the asynchronous client of the package."""
    from kubernetes.aio import client, config, watch  # noqa: PLC0415

    async def follow() -> None:
        await config.load_kube_config(kubeconfig)
        progress, known = Progress(objects), 0

        async def one(method: Callable[..., Any]) -> None:
            nonlocal known
            listed = await method()
            known += len(listed.items)
            progress.listed(known)
            version = listed.metadata.resource_version
            async with watch.Watch().stream(method, resource_version=version) as stream:
                async for _ in stream:
                    progress.changed()

        async with client.ApiClient() as api:
            await asyncio.gather(
                one(client.CoreV1Api(api).list_service_for_all_namespaces),
                one(client.DiscoveryV1Api(api).list_endpoint_slice_for_all_namespaces),
            )

    asyncio.run(follow())


def measure(way: str, control_plane: ControlPlane, objects: int) -> dict[str, float]:
    """Run one way in a process, change slices, and return what it reported."""
    _runs.append(way)
    command = [sys.executable, "-m", "tests.bench.list_and_watch", "--follow", way, str(control_plane.kubeconfig)]
    with subprocess.Popen([*command, "--objects", str(objects)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found: dict[str, float] = json.loads(process.stdout.readline())
        time.sleep(2)  # the other kind's watch begins
        for number in range(CHANGES):
            # An address that no earlier run has set: a patch that changes nothing makes no event.
            ip = f"10.250.{len(_runs)}.{number + 1}"
            endpoints = endpoint_slice(number, [ip])["endpoints"]
            control_plane.request("PATCH", f"{SLICES}/web-{number}-1", {"endpoints": endpoints})
        found |= json.loads(process.stdout.readline())
        process.kill()
    return found


def main() -> None:
    """Measure each way in turns, and print medians with the range."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--services", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--follow", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--objects", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.follow:
        way, kubeconfig = arguments.follow
        follow = {"pyproxy": follow_by_pyproxy, "informer": follow_by_informer, "aio": follow_by_aio}[way]
        follow(kubeconfig, arguments.objects)
        return
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with ControlPlane() as control_plane:
        Cluster(control_plane, Shape(arguments.services, 3)).fill()
        for number in range(1, arguments.rounds + 1):
            for way in WAYS:
                found[way].append(measure(way, control_plane, 2 * arguments.services))
                print(f"round {number}, {way}: {found[way][-1]}", flush=True)
    for name, unit in (("list", "s"), ("cpu", "s"), ("peak", "MB"), ("change", "s")):
        for way in WAYS:
            values = [sample[name] for sample in found[way]]
            median, low, high = statistics.median(values), min(values), max(values)
            print(f"{name:7} {way:9} {median:10.4g} {unit} ({low:.4g}-{high:.4g})")


if __name__ == "__main__":
    main()
