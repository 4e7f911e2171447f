"""What can be read from the source: no shell, and dependencies that are pinned by hash."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "pyproxy").rglob("*.py"))
LOCKS = sorted([*ROOT.glob("requirements*.lock"), *ROOT.glob("tests/requirements*.lock")])
SHELLS = frozenset({"sh", "bash", "dash", "/bin/sh", "/bin/bash"})
SHELL_CALLS = frozenset({"system", "popen", "getoutput", "getstatusoutput", "create_subprocess_shell"})


def shells(tree: ast.AST) -> Iterator[int]:
    """Yield the lines of calls that start a shell, and of argument lists that begin with one."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(attr=name) | ast.Name(id=name)) if name in SHELL_CALLS:
                yield node.lineno
            case ast.keyword(arg="shell"):
                yield node.value.lineno
            case ast.List(elts=[first, second, *_]) | ast.Tuple(elts=[first, second, *_]):
                match first, second:
                    case ast.Constant(value=program), ast.Constant(value="-c") if program in SHELLS:
                        yield node.lineno


@pytest.mark.parametrize(
    "text",
    ["os.system('x')", "run('x', shell=True)", "run(['sh', '-c', x])", "subprocess.getoutput(x)", "system('x')"],
)
def test_a_shell_is_found(text: str) -> None:
    """Each way to start a shell is found."""
    assert [1] == list(shells(ast.parse(text)))


def test_no_shell() -> None:
    """Pyproxy starts no shell: no text of a user can become a command."""
    assert SOURCES
    assert [] == [f"{path}:{line}" for path in SOURCES for line in shells(ast.parse(path.read_text()))]


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: str(path.relative_to(ROOT)))
def test_each_dependency_is_pinned_by_hash(path: Path) -> None:
    """Each requirement has one version and at least one SHA-256, so that an index cannot change what is installed."""
    entries = re.findall(r"(?m)^([a-z0-9].*?)(?=^[a-z0-9#]|\Z)", path.read_text(), re.DOTALL)

    assert entries
    assert [] == [
        entry for entry in entries if not re.match(r"[-\w.\[\]]+==\S+ .*--hash=sha256:[0-9a-f]{64}", entry, re.DOTALL)
    ]
