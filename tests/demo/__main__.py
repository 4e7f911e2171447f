"""The command line of the demo. Exit status: 0 all passed, 1 a check failed, 2 the demo could not run."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from contextlib import ExitStack
from types import FrameType

from tests.lab import LabError

from .cluster import Cluster
from .course import send_everything
from .screen import Screen
from .shell import prompt

MODES = ("iptables", "nftables", "ipvs")
FAILED = 1
COULD_NOT_RUN = 2
NEEDS_ROOT = """\
The demo creates network namespaces and writes rules in them, which needs root privileges. It does not
change the network of this machine. Try: sudo make demo"""
INTRODUCTION = """\
pyproxy on two nodes. Each host is a network namespace; the network of this machine is not changed.

     outside1       outside2       database         172.18.0.101, .102, .200
         |              |              |
    -----+-------+------+-------+------+-----       172.18.0.0/24
                 |              |
               node1          node2                 172.18.0.11, .12, `pyproxy run` on each
               / | \\           / \\
    pod1-1 pod1-2 client-pod  pod2-1 pod2-2         10.244.1.11, .12, .13 and 10.244.2.11, .12

outside1 reaches the addresses of Services through node1, outside2 through node2. Servers answer
with their name and with the client that they see after all translation: "pod1-1 sees 10.244.1.13".
"""


def main() -> int:
    """Run the demo and return its exit status."""
    options = _options()
    if os.geteuid() != 0:
        print(NEEDS_ROOT, file=sys.stderr)
        return COULD_NOT_RUN
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    try:
        return _run(Screen(), mode=options.mode, shell=options.shell)
    except LabError as error:
        print(f"The demo cannot continue: {error}", file=sys.stderr)
        return COULD_NOT_RUN
    except KeyboardInterrupt:
        print("Interrupted; everything was removed.", file=sys.stderr)
        return 128 + signal.SIGINT


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tests.demo", description="See real packets reach real servers.")
    parser.add_argument(
        "--mode",
        choices=MODES,
        default=MODES[0],
        help="the --proxy-mode of the agents; ipvs needs a kernel with IPVS, such as that of tests.guest",
    )
    parser.add_argument("--shell", action="store_true", help="at the end, start a shell in the client pod")
    return parser.parse_args()


def _end(number: int, _: FrameType | None) -> None:
    """Raise an exception, so that everything is removed before the exit."""
    sys.exit(128 + number)


def _run(screen: Screen, *, mode: str, shell: bool) -> int:
    screen.say(INTRODUCTION)
    with ExitStack() as stack:
        started = time.monotonic()
        with screen.busy("building the lab, starting the agents"):
            cluster = stack.enter_context(Cluster(mode))
        stack.callback(_ignore_signals)
        screen.say(f"Built, and the agents are ready, after {time.monotonic() - started:.1f} s. Mode: {mode}.\n")
        started = time.monotonic()
        send_everything(cluster, screen)
        if screen.failed:
            screen.logs(cluster.log_tails())
        screen.sum_up(time.monotonic() - started)
        if shell:
            prompt(cluster)
    return FAILED if screen.failed else 0


def _ignore_signals() -> None:
    """Ignore a second Ctrl-C, which would interrupt the cleanup."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    sys.exit(main())
