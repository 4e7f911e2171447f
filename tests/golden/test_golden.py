"""Golden files: the rules for small states of a cluster, each in a folder with a file for every mode.

`pytest tests/golden --update-golden` rewrites the files; read the difference before committing it. A file has the
output of ``pyproxy dump-rules`` for ``default/web``, or the whole output if the state has no such Service. A new mode
is a row in OUTPUTS.
"""

from pathlib import Path

import pytest
from click.testing import CliRunner

from pyproxy.cli.program import pyproxy

FOLDER = Path(__file__).parent
CASES = sorted(path.parent for path in FOLDER.glob("*/state.yaml"))
OUTPUTS = {"iptables": "restore", "ipvs": "text", "nftables": "text"}
"""The output format of ``dump-rules`` by mode."""
FAMILIES = (("--family=ipv4",), ("--family=ipv6",))
FLAGS = ("--node=node1", "--cluster-cidr=10.244.0.0/16,fd00:10:244::/48")


def printed(case: Path, mode: str) -> str:
    """Return the rules that the command prints for a case."""
    state = case / "state.yaml"
    service = ["--service=default/web"] if "name: web\n" in state.read_text() else []
    command = ["dump-rules", f"--manifests={state}", f"--proxy-mode={mode}", "-o", OUTPUTS[mode], *FLAGS, *service]
    text = ""
    # Input for iptables-restore is of one family; one that the Services do not have is empty.
    for family in FAMILIES if OUTPUTS[mode] == "restore" else ((),):
        result = CliRunner().invoke(pyproxy, [*command, *family], catch_exceptions=False)
        assert (0, "") == (result.exit_code, result.stderr)
        text += result.stdout
    return text


@pytest.mark.parametrize("mode", OUTPUTS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_rules(case: Path, mode: str, pytestconfig: pytest.Config) -> None:
    """The output of the command equals the reviewed golden file."""
    golden = case / f"{mode}.txt"
    found = printed(case, mode)
    if pytestconfig.getoption("--update-golden"):
        golden.write_text(found)

    assert golden.read_text() == found


def test_every_file_is_used() -> None:
    """Each file in the folder of a case is its state, or the rules of an existing mode."""
    names = {"state.yaml", *(f"{mode}.txt" for mode in OUTPUTS)}

    assert [] == [str(path) for path in FOLDER.glob("*[!_]/*") if path.is_file() and path.name not in names]
