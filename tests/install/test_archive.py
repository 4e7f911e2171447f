"""The archive of `make dist`: it has all modules that pyproxy imports, although unused ones are left out."""

from __future__ import annotations

import ast
import os
import sys
import zipfile
from pathlib import Path

import pytest

from .machine import ROOT, run


@pytest.fixture(scope="module")
def tree(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Provide the unpacked tree of the archive."""
    directory = tmp_path_factory.mktemp("archive")
    [archive] = dist.glob("pyproxy-*.tar.gz")
    run("tar", "-xzf", str(archive), f"--directory={directory}", "--strip-components=1")
    return directory / "pyproxy"


def imports(package: Path) -> set[str]:
    """Return the modules that a package imports, also inside functions; `a.b` may be a name in `a`."""
    found: set[str] = set()
    for path in package.rglob("*.py"):
        for item in ast.walk(ast.parse(path.read_text())):
            match item:
                case ast.Import(names=names):
                    found.update(name.name for name in names)
                case ast.ImportFrom(module=str(module), names=names):
                    found.update(f"{module}:{name.name}" for name in names)
    return found


def test_every_import_works(tree: Path) -> None:
    """Every import of every module works with only the Python packages of the archive."""
    [packages] = tree.glob("lib/python3.*/site-packages")
    wanted = imports(packages / "pyproxy")
    assert "kubernetes.config:kube_config" in wanted
    lines = [
        f"from {name.replace(':', ' import ')}" if ":" in name else f"import {name}"
        for name in sorted(wanted - {"annotations"})
    ]
    program = "\n".join(line for line in lines if "__future__" not in line)

    run(str(tree / "bin" / "python3"), "-I", "-c", program)


def test_credentials_are_found(tree: Path) -> None:
    """Kubeconfigs, exec plugins and identity providers work with the reduced kubernetes package."""
    [packages] = tree.glob("lib/python3.*/site-packages")
    environment = {"PYTHONPATH": str(packages), "PATH": os.environ["PATH"], "HOME": os.environ["HOME"]}

    said = run(
        *("env", "-i", *(f"{name}={value}" for name, value in environment.items())),
        *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "tests/unit/kubeapi/test_credentials.py"),
    )

    assert "passed" in said


def test_the_wheel_has_the_modules(dist: Path) -> None:
    """The wheel contains every module of the tree."""
    [wheel] = dist.glob("pyproxy_node-*.whl")
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "pyproxy").rglob("*.py")}

    assert modules == {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("pyproxy/")} & modules
    assert modules
