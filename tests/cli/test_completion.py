"""Completion of commands, flags and values, by a real shell."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent


def complete(*words: str) -> list[str]:
    """Return what bash offers for a command line, split as bash splits it; the last word is incomplete."""
    line = " ".join(map(shlex.quote, ("pyproxy", *words)))
    script = f"""
        source <(pyproxy completion bash)
        compopt() {{ COMPREPLY+=("compopt $*"); }}
        COMP_WORDS=({line}) COMP_CWORD={len(words)}
        _pyproxy_completion pyproxy
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(
        ["bash", "-c", script],
        env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "" == done.stderr
    return done.stdout.split("\n")[:-1]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("ver",), ["version"]),
        (("run", "--proxy-mode", ""), ["auto", "iptables", "ipvs", "nftables"]),
        (("run", "--proxy-mode", "ip"), ["iptables", "ipvs"]),
        (("run", "--proxy-mode", "="), ["auto", "iptables", "ipvs", "nftables"]),
        (("run", "--proxy-mode", "=", "ip"), ["iptables", "ipvs"]),
        (("run", "--proxy-mode=ipvs", "--proxy"), ["--proxy-mode"]),
        (("dump-rules", "--nonsense", "-o", "r"), ["restore"]),
        (("run", "--manifests", ""), ["compopt -o default"]),
        (("completion", ""), ["bash", "zsh", "fish"]),
    ],
    ids=str,
)
def test_bash(words: tuple[str, ...], expected: list[str]) -> None:
    """Bash completes commands, flags, the values of flags with a fixed set of them, and names of files."""
    assert expected == complete(*words)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_script_of_each_shell(shell: str) -> None:
    """Each script is valid in its shell, as far as the shell is installed."""
    script = subprocess.run([BIN / "pyproxy", "completion", shell], capture_output=True, text=True, check=True).stdout

    assert "_PYPROXY_COMPLETE" in script
    if shutil.which(shell):
        assert 0 == subprocess.run([shell, "-n"], input=script, text=True, check=False).returncode
