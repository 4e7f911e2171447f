"""What a release says about itself: one version everywhere, metadata of the package, and manual pages."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from pyproxy import __version__
from pyproxy.cli.program import COMMANDS

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("name", ["Containerfile", "manifests/base/daemonset.yaml", "README.md", "docs/install.md"])
def test_versions_are_the_same(name: str) -> None:
    """Each version of pyproxy in these files is that of the package."""
    found = re.findall(r"(?:pyproxy:|version |newTag: \"?)v?(\d+\.\d+\.\d+)\b(?!\.)", (ROOT / name).read_text())

    assert {__version__} >= set(found)


def test_changelog_has_the_version() -> None:
    """The version has a section of the changelog, or is announced as the next one."""
    text = (ROOT / "CHANGELOG.md").read_text()
    announced = f"{__version__} will be" in text.partition("## [Unreleased]")[2].partition("\n## ")[0]

    assert announced or f"\n## [{__version__}] - " in text


def test_description_is_complete_on_another_site() -> None:
    """The long description has absolute links only, and names the distribution."""
    text = (ROOT / PROJECT["readme"]["file"]).read_text()

    assert [] == [link for link in re.findall(r"\]\(([^)]*)\)", text) if not link.startswith("https://")]
    assert f"pipx install {PROJECT['name']}\n" in text
    assert {"authors", "maintainers", "keywords", "classifiers", "urls", "license"} <= PROJECT.keys()


def test_manual_pages(tmp_path: Path) -> None:
    """There is a page for each command, without errors and warnings of mandoc, and with the flags of the command."""
    subprocess.run([sys.executable, ROOT / "packaging/man_pages.py", tmp_path], check=True)

    pages = {page.stem: page for page in tmp_path.iterdir()}
    assert {"pyproxy", *(f"pyproxy-{name}" for name in COMMANDS)} == pages.keys()
    lint = subprocess.run(["mandoc", "-T", "lint", "-W", "warning", *pages.values()], capture_output=True, check=False)
    assert b"" == lint.stdout + lint.stderr
    shown = subprocess.run(["mandoc", "-T", "utf8", pages["pyproxy-run"]], capture_output=True, text=True, check=True)
    text = re.sub(r".\x08", "", shown.stdout)  # bold characters are overstruck
    assert "--proxy-mode auto|iptables|ipvs|nftables" in text
    assert "EXIT STATUS" in text


def test_bill_of_materials() -> None:
    """Each locked package is a component with version and hashes, all are dependencies, and two runs give the same document."""
    command = [sys.executable, str(ROOT / "packaging/sbom.py"), __version__]
    first, second = (
        subprocess.run(command, env={"SOURCE_DATE_EPOCH": "0"}, capture_output=True, check=True) for _ in "12"
    )

    assert first.stdout == second.stdout
    found = json.loads(first.stdout)
    locked = re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert locked == [(each["name"], each["version"]) for each in found["components"]]
    assert [f"pkg:pypi/{name}@{version}" for name, version in locked] == found["dependencies"][0]["dependsOn"]
    hashes = [each["externalReferences"][0]["hashes"] for each in found["components"]]
    assert {64} == {len(item["content"]) for items in hashes for item in items}
    assert all(hashes)
    assert ("CycloneDX", "1970-01-01T00:00:00Z") == (found["bomFormat"], found["metadata"]["timestamp"])
