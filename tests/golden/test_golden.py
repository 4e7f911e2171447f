"""The rules for small states of a cluster, each in a folder with a file of rules for every mode.

`pytest tests/golden --update-golden` writes the files anew; read the difference before it is committed. What is written
is what ``pyproxy dump-rules`` prints of ``default/web``, or all that it prints where the state has no such Service.
A new mode is a row in OUTPUTS.
"""

from pathlib import Path

import pytest
from click.testing import CliRunner

from pyproxy.cli.program import pyproxy

FOLDER = Path(__file__).parent
CASES = sorted(path.parent for path in FOLDER.glob("*/state.yaml"))
OUTPUTS = {"iptables": "restore", "ipvs": "text", "nftables": "text"}
"""By mode: how ``dump-rules`` prints its rules for this."""
FLAGS = ("--node=node1", "--cluster-cidr=10.244.0.0/16,fd00:10:244::/48")


def printed(case: Path, mode: str) -> str:
    """Return the rules that the command prints for a case."""
    state = case / "state.yaml"
    service = ["--service=default/web"] if "name: web\n" in state.read_text() else []
    command = ["dump-rules", f"--manifests={state}", f"--proxy-mode={mode}", "-o", OUTPUTS[mode], *FLAGS, *service]
    result = CliRunner().invoke(pyproxy, command, catch_exceptions=False)
    assert (0, "") == (result.exit_code, result.stderr)
    return result.stdout


@pytest.mark.parametrize("mode", OUTPUTS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_rules(case: Path, mode: str, pytestconfig: pytest.Config) -> None:
    """The command prints, to the letter, what somebody has read and found right."""
    golden = case / f"{mode}.txt"
    found = printed(case, mode)
    if pytestconfig.getoption("--update-golden"):
        golden.write_text(found)

    assert golden.read_text() == found


def test_no_file_is_left_over() -> None:
    """Each file in a case's folder is its state, or the rules of a mode that there is."""
    names = {"state.yaml", *(f"{mode}.txt" for mode in OUTPUTS)}

    assert [] == [str(path) for path in FOLDER.glob("*[!_]/*") if path.is_file() and path.name not in names]
