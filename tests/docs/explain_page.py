"""Writes the sample outputs of docs/explain.md from real runs: ``python -m tests.docs.explain_page``."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "explain.md"
DUMPS = ROOT / "tests" / "inputs" / "kube-proxy"
_FLAGS = ("--manifests=tests/inputs/explain.yaml", "--cluster-cidr=10.244.0.0/16")
_SAMPLE = re.compile(r"(?<=```text\n)\$ pyproxy explain (?P<words>[^\n]*)\n(?P<output>.*?)(?=```)", re.DOTALL)


def page() -> str:
    """Return the page with the output of each command that it shows."""
    return _SAMPLE.sub(_sample, PAGE.read_text())


def _sample(found: re.Match[str]) -> str:
    words = found["words"].split()
    is_dump = any(word.startswith("--rules") for word in words)
    done = subprocess.run(
        [sys.executable, "-m", "pyproxy", "explain", *(() if is_dump else _FLAGS), *words],
        cwd=DUMPS if is_dump else ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    return f"$ pyproxy explain {found['words']}\n{done.stdout}{done.stderr}"


if __name__ == "__main__":
    PAGE.write_text(page())
