"""The commit and the time of the build."""

from pathlib import Path

import pytest

from pyproxy.serve.build_info import BuildInfo, build_info


def test_file_of_the_build(tmp_path: Path) -> None:
    """The values of the file are returned."""
    (tmp_path / "build.json").write_text('{"gitCommit": "57c4811", "buildDate": "2026-11-30T12:00:00Z"}')

    assert BuildInfo("57c4811", "2026-11-30T12:00:00Z") == build_info(tmp_path / "build.json")


@pytest.mark.parametrize("text", ["", "[]", "{}"])
def test_unusable_file(tmp_path: Path, text: str) -> None:
    """Without a usable file the values are empty, as in a checkout."""
    (tmp_path / "build.json").write_text(text)

    assert BuildInfo("", "") == build_info(tmp_path / "build.json") == build_info(tmp_path / "missing")
