"""Records the rules that another version of pyproxy writes, which `test_upgrade.py` loads.

To renew the record, run it for the last release before the first change of rules after it:

    git worktree add /tmp/previous v0.1.0
    .venv/bin/python -m tests.packets.previous_rules /tmp/previous
    .venv/bin/python -m tests.guest .venv/bin/python -m tests.packets.previous_rules /tmp/previous
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.lab import Lab
from tests.lab.waiting import wait_until

from .cluster import CLUSTER_CIDR_FLAG
from .modes import MODES, Mode
from .objects import PLAN, node
from .test_restart import OBJECTS

FOLDER = Path(__file__).parents[1] / "inputs" / "previous"
NODE = "node1"
FLAGS = (
    *("--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0"),
    *("--metrics-bind-address=", "--oom-score-adj=0", CLUSTER_CIDR_FLAG),
)
# Services with endpoints, whose names are in the rules of each mode.
_NAMES = ("default/web", "default/local", "default/pinned")
_DEVICE = "kube-ipvs0"


def dumps(mode: Mode) -> dict[str, tuple[str, ...]]:
    """Return the commands that print the rules of a mode, by the name of what they print."""
    if mode.is_iptables:
        return dict(zip(("iptables", "ip6tables"), mode.dumps, strict=True))
    if not mode.name.startswith("ipvs"):
        return {"nft": ("nft", "-s", "list", "ruleset")}
    saves = dict(zip(("iptables", "ip6tables", "ipset", "ipvsadm"), mode.dumps, strict=True))
    addresses = " && ".join(
        f"ip {family} route show table local dev {_DEVICE} proto static"
        f" | sed 's/^local/route add table local local/; s/ *$/ dev {_DEVICE} proto static/'"
        for family in ("-4", "-6")
    )
    return {**saves, "ip": ("sh", "-c", addresses)}


def record(mode: Mode, source: Path, folder: Path) -> None:
    """Let the other version write its rules on a node of a lab, and save them."""
    manifests = folder / f"{mode.name}.json"
    objects = [*(node(planned.name) for planned in PLAN.nodes), *OBJECTS]
    manifests.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))
    with Lab(PLAN.shape) as lab:
        host = lab[NODE]
        env = {"PYTHONPATH": str(source), "XTABLES_LOCKFILE": str(folder / "lock")}
        agent = host.start(
            *(sys.executable, "-m", "pyproxy", "run", f"--manifests={manifests}", f"--hostname-override={NODE}"),
            *(*mode.flags, *FLAGS),
            env=env,
        )
        agent.wait_until_ready()

        def has_all() -> bool:
            text = "".join(host.run(*dump, env=env) for dump in dumps(mode).values())
            return all(name in text for name in _NAMES)

        wait_until(has_all, "all rules are written")
        agent.signal(15)
        agent.wait()
        for name, dump in dumps(mode).items():
            text = host.run(*dump, env=env)
            lines = [line for line in text.splitlines() if line and not line.startswith("#")]
            (FOLDER / f"{mode.name}.{name}.txt").write_text("".join(f"{line}\n" for line in lines))


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    with TemporaryDirectory() as temporary:
        for each in MODES:
            record(each, Path(sys.argv[1]).resolve(), Path(temporary))
            print(f"{each}: recorded")
