"""The directories in which a change can be one of a file."""

from pathlib import Path

import pytest

from pyproxy.manifests.file_version import directories_of


def test_directories_of_a_config_map(tmp_path: Path) -> None:
    """The link of a file and the link of the volume are in the same directory, and the file is in another one."""
    (tmp_path / "..1").mkdir()
    (tmp_path / "..1" / "a.yaml").write_text("")
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "a.yaml").symlink_to("..data/a.yaml")

    assert {str(tmp_path), str(tmp_path / "..1")} == directories_of(str(tmp_path / "a.yaml"))


def test_directories_of_a_path_with_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Links in the middle of a path count, absolute ones too, as do files that do not exist."""
    (tmp_path / "one" / "deep").mkdir(parents=True)
    (tmp_path / "two").symlink_to(tmp_path / "one")
    monkeypatch.chdir(tmp_path)

    assert {str(tmp_path), str(tmp_path / "one/deep")} == directories_of(str(tmp_path / "two/deep/nosuch"))
    assert {".", str(tmp_path / "one/deep")} == directories_of("two/deep/a")
    assert {"."} == directories_of("a")


def test_directories_of_a_loop(tmp_path: Path) -> None:
    """Links that lead to each other end like those of any other path."""
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / name).symlink_to(other)

    assert {str(tmp_path)} == directories_of(str(tmp_path / "a"))
