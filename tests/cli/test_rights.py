"""Commands without the rights that they need: one line that names what is missing, and exit status 1."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PYPROXY = str(Path(sys.executable).with_name("pyproxy"))
WITHOUT_CAPABILITIES = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
MODES = ("iptables", "nftables", "ipvs", "auto")
RUN = ("run", "--hostname-override=node-1", "--healthz-bind-address=", "--metrics-bind-address=", "--control-socket=")
COMMANDS = (
    *((*RUN, f"--proxy-mode={mode}") for mode in MODES),
    *((*RUN, f"--proxy-mode={mode}", "--init-only") for mode in MODES),
    *(("dump-rules", "--live", f"--proxy-mode={mode}") for mode in MODES),
    ("cleanup",),
    ("explain", "--control-socket=", "outside", "10.96.0.10:80"),
    ("plan", "--hostname-override=node-1"),
    ("takeover", "--dry-run", "--hostname-override=node-1"),
)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up capabilities of its own")


def without(*capabilities: str) -> tuple[str, ...]:
    """Return the start of a command line that has all capabilities of root but some."""
    return ("setpriv", f"--bounding-set={','.join(f'-{name}' for name in capabilities)}")


def run(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command on an empty directory of objects where it takes one."""
    manifests = [f"--manifests={tmp_path}"] if {"run", "plan", "takeover"} & set(words) else []
    return subprocess.run([*words, *manifests], capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_missing_capability_is_named(tmp_path: Path, words: tuple[str, ...]) -> None:
    """Without any capability a command ends before it changes anything, and names CAP_NET_ADMIN."""
    done = run(tmp_path, *WITHOUT_CAPABILITIES, PYPROXY, *words)

    name = " ".join(words[:1] if words[0] in {"run", "cleanup", "explain", "plan"} else words[:2])
    message = f"Error: {name} needs CAP_NET_ADMIN, which this process does not have: run it as root\n"
    assert (1, message) == (done.returncode, done.stderr)


def test_legacy_iptables_needs_raw_sockets(tmp_path: Path) -> None:
    """The legacy variant is refused without CAP_NET_RAW."""
    flags = (*RUN, "--proxy-mode=iptables", "--iptables-variant=legacy")
    done = run(tmp_path, *without("net_raw"), PYPROXY, *flags)

    message = "Error: run needs CAP_NET_RAW, which this process does not have: run it as root\n"
    assert (1, message) == (done.returncode, done.stderr)


@pytest.mark.parametrize(("flags", "letter"), [((), "I"), (("--oom-score-adj=-998",), "W")], ids=["default", "flag"])
def test_oom_score_that_cannot_be_set(tmp_path: Path, flags: tuple[str, ...], letter: str) -> None:
    """Without CAP_SYS_RESOURCE the OOM score cannot be lowered, which is a warning only if the user set a value."""
    prefix = ("unshare", "-n", *without("sys_resource"), PYPROXY)
    # The agent ends because its source is missing.
    done = run(tmp_path / "missing", *prefix, *RUN, "--takeover=never", "--conntrack-max-per-core=0", *flags)

    [line] = [line for line in done.stderr.splitlines() if "cannot be set" in line and "oom-score-adj" in line]
    assert letter == line[0]
