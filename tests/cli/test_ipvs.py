"""The IPVS mode on a kernel without IPVS."""

import subprocess
import sys
from pathlib import Path

import pytest

PYPROXY = Path(sys.executable).with_name("pyproxy")


@pytest.mark.needs_no_ipvs
@pytest.mark.parametrize("words", [("run",), ("dump-rules", "--live")])
def test_missing_module_is_named(words: tuple[str, ...], tmp_path: Path) -> None:
    """The error names the module, and the modes that do not need it."""
    source = [] if "--live" in words else [f"--manifests={tmp_path}", "--conntrack-max-per-core=0", "--oom-score-adj=0"]
    more = ["--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0"] if source else []

    finished = subprocess.run(
        [PYPROXY, *words, "--proxy-mode=ipvs", *source, *more], capture_output=True, text=True, timeout=60, check=False
    )

    assert 2 == finished.returncode
    assert "needs the kernel module ip_vs" in finished.stderr
    assert "use --proxy-mode=nftables or --proxy-mode=iptables" in finished.stderr
