"""The commit and the time of the build, which ``packaging/wheel.sh`` writes into the package; empty for a checkout."""

import json
from pathlib import Path
from typing import NamedTuple

_FILE = Path(__file__).parents[1] / "build.json"


class BuildInfo(NamedTuple):
    """Where this installation comes from."""

    git_commit: str = ""
    build_date: str = ""
    """RFC 3339."""


def build_info(path: Path = _FILE) -> BuildInfo:
    """Return the commit and the time of the build; empty texts if they are not known."""
    try:
        values = json.loads(path.read_text())
        return BuildInfo(str(values["gitCommit"]), str(values["buildDate"]))
    except (OSError, ValueError, KeyError, TypeError):
        return BuildInfo()
