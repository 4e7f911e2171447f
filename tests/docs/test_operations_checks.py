"""The table of checks in docs/operations.md has the checks of `pyproxy doctor`, in their order."""

import re
from pathlib import Path

from pyproxy.doctor.checks import CHECKS

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"


def test_checks_are_documented() -> None:
    """Each check has a row, and each row has a check."""
    section = PAGE.read_text().partition("## Check a node")[2].partition("\n## ")[0]

    assert [check.name for check in CHECKS] == re.findall(r"^\| `([\w-]+)` \|", section, re.MULTILINE)
