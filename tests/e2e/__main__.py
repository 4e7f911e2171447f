"""``python -m tests.e2e [--modes "iptables nftables"] [--focus PATTERN] ...``: run the suites and scenarios, and write the tables.

It builds what it needs, brings a cluster up, rolls out each proxy in each mode and runs the suites, makes all changes under
traffic, and takes everything down again. Reports are in build/e2e.
"""

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from xml.etree import ElementTree as ET

from tests.cluster.process import ClusterError
from tests.lab import LabError

from . import build, images, report
from .cluster import Cluster
from .proxies import ROOT, Proxy, Rollouts
from .scenarios import Outcome, World, scenarios
from .suite import FOCUS, all_network_tests, runs

RESULTS = ROOT / "build" / "e2e"
MODES = ("iptables", "nftables")
_PROCESSES = 6


def main(words: Sequence[str]) -> int:
    """Run what the flags select, and return the exit status: 1 if a test of pyproxy failed."""
    asked = _parser().parse_args(words)
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # also where the caller ignores them, as shells do for jobs in the background
        signal.signal(number, _interrupt)
    RESULTS.mkdir(parents=True, exist_ok=True)
    programs = build.programs()
    failed: list[str] = []
    with tempfile.TemporaryDirectory(prefix="pyproxy-e2e-", dir=build.CACHE) as folder:
        archives = [images.suite_archive(programs), images.pyproxy_archive(images.TAG, Path(folder))]
        if asked.scenarios:
            tree = images.checkout(asked.previous, Path(folder) / "previous")
            archives.append(images.pyproxy_archive(images.PREVIOUS_TAG, Path(folder), tree))
        started = time.monotonic()
        with Cluster(programs, archives, RESULTS / "logs") as cluster:
            _say(f"three nodes are ready after {time.monotonic() - started:.0f} s")
            # As in a cluster of kubeadm, kube-proxy and its ConfigMap are there first.
            Rollouts(cluster).install(Proxy("kube-proxy", "iptables"))
            tests = all_network_tests(cluster, programs, RESULTS)
            columns: dict[str, dict[str, report.Result]] = {}
            for proxy in proxies(asked.modes, asked.proxies):
                columns[str(proxy)] = _run_suites(cluster, programs, proxy, asked)
                if proxy.name == "pyproxy":
                    failed += report.failures(columns[str(proxy)])
                # After each column, so that a run that is interrupted has a table as well.
                (RESULTS / "table.md").write_text(report.table(columns))
                (RESULTS / "not-run.md").write_text(report.not_run(tests, columns))
            if asked.scenarios:
                failed += [line for outcome in _run_scenarios(cluster, tree) for line in outcome.failures]
    for line in failed:
        _say(f"failed: {line}")
    return 1 if failed else 0


def previous() -> str:
    """Return the last tag, or the last commit if there is no tag."""
    found = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--tags", "--abbrev=0", "HEAD~1"],
        check=False,
        capture_output=True,
        text=True,
    )
    return found.stdout.strip() or "HEAD~1"


def proxies(modes: str, names: str) -> list[Proxy]:
    """Return the columns of the table. The image of kube-proxy has only one variant of iptables."""
    found = [Proxy(name, mode) for mode in modes.split() for name in names.split()]
    return [proxy for proxy in found if proxy != Proxy("kube-proxy", "iptables-legacy")]


def _run_suites(
    cluster: Cluster, programs: Mapping[str, Path], proxy: Proxy, asked: argparse.Namespace
) -> dict[str, report.Result]:
    seconds = Rollouts(cluster).install(proxy)
    _say(f"{proxy}: rolled out in {seconds:.0f} s")
    reports = []
    for run in runs(str(proxy), proxy.mode, asked.focus, asked.processes, slow=asked.slow):
        if run.processes > 1 or asked.serial:
            started = time.monotonic()
            run.start(cluster, programs, RESULTS)
            reports.append(RESULTS / f"{run.name}.json")
            found = report.results(reports[-1:])
            _say(f"{run.name}: {report.counts(found)} in {time.monotonic() - started:.0f} s")
    return report.results(reports)


def _run_scenarios(cluster: Cluster, tree: Path) -> list[Outcome]:
    rollouts, outcomes = Rollouts(cluster), []
    rollouts.install(Proxy("kube-proxy", "iptables"))
    world = World(cluster, images.suite_image("Agnhost"))
    for scenario in scenarios(f"{images.PYPROXY}:{images.TAG}", tree):
        outcomes.append(world.run(scenario))
        _say(str(outcomes[-1]))
    suite = ET.Element("testsuite", name="scenarios", tests=str(len(outcomes)))
    for outcome in outcomes:
        case = ET.SubElement(suite, "testcase", name=outcome.name, time=f"{outcome.seconds:.1f}")
        if outcome.failures:
            ET.SubElement(case, "failure").text = "\n".join(outcome.failures)
    ET.ElementTree(suite).write(RESULTS / "scenarios.xml", encoding="unicode")
    return outcomes


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.e2e", description=__doc__)
    parser.add_argument("--modes", default=" ".join(MODES), help="modes of pyproxy and of kube-proxy")
    parser.add_argument("--proxies", default="pyproxy kube-proxy", help="proxies that run the suites")
    parser.add_argument("--focus", default=FOCUS, help="pattern of test names, as ginkgo reads it")
    parser.add_argument("--processes", type=int, default=_PROCESSES, help="number of tests at the same time")
    parser.add_argument("--no-serial", dest="serial", action="store_false", help="leave out tests that must run alone")
    parser.add_argument("--slow", action="store_true", help="also run tests that take a quarter of an hour")
    parser.add_argument("--previous", default=previous(), help="commit whose image and manifests are upgraded")
    parser.add_argument(
        "--no-scenarios", dest="scenarios", action="store_false", help="leave out the changes under traffic"
    )
    return parser


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _say(line: str) -> None:
    print(f"{time.strftime('%T')} {line}", flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (ClusterError, LabError, TimeoutError, subprocess.SubprocessError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
