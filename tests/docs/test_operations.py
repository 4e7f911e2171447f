"""The messages that docs/operations.md explains are those of the program.

The variable parts of a message, `…` on the page, are not compared, and its clauses are compared separately: they may come
from different modules.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "operations.md"
SHORTEST_PART = 4
"""Shorter constant parts, such as `: `, occur everywhere."""


def messages(text: str) -> Iterator[str]:
    """Yield the messages in quotes, and those in the first column of the tables of messages."""
    yield from re.findall(r'"([^"\n]+)"', text)
    for section in re.findall(r"^## (?:Log messages|Startup errors)$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL):
        for cell in re.findall(r"^\| (.*?) \|", section, re.MULTILINE):
            yield from re.findall(r"`([^`]+)`", cell)


@cache
def constants() -> str:
    """Return all strings of the program except docstrings, f-strings with `…` for their values."""
    found = []
    for path in sorted((ROOT / "pyproxy").rglob("*.py")):
        nodes = [*ast.walk(ast.parse(path.read_text()))]
        docstrings = {node.value for node in nodes if isinstance(node, ast.Expr)}
        for node in nodes:
            if node in docstrings:
                continue
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def warnings() -> Iterator[str]:
    """Yield the format strings of warnings and errors that the program logs, except those without constant text."""
    for path in sorted((ROOT / "pyproxy").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(
                    func=ast.Attribute(value=ast.Name("logger"), attr="warning" | "error" | "exception"),
                    args=[ast.Constant(str(text)), *_],
                ) if constant_parts(text):
                    yield text


def constant_parts(text: str) -> list[str]:
    """Return the parts of a message or of a format string that do not vary, without the shortest."""
    parts = (part.strip() for part in re.split(r"…|FILE|%[sd]|%\.\df|[:;] ", text))
    return [part for part in parts if len(part) >= SHORTEST_PART]


def unknown_parts(message: str) -> list[str]:
    """Return the constant parts of a message that no string of the program contains."""
    return [part for part in constant_parts(message) if not re.search(rf"{re.escape(part)}(?!\w)", constants())]


@pytest.mark.parametrize("message", sorted(set(messages(PAGE.read_text()))))
def test_each_message_exists(message: str) -> None:
    """Each message that the page explains is a string of the program."""
    assert [] == unknown_parts(message)


@pytest.mark.parametrize("text", sorted(set(warnings())))
def test_each_warning_is_explained(text: str) -> None:
    """The page explains each warning and error that the program logs."""
    explained = {part for message in messages(PAGE.read_text()) for part in constant_parts(message)}

    assert [part for part in constant_parts(text) if any(part in one or one in part for one in explained)]


def test_a_message_that_the_program_does_not_have() -> None:
    """A message with one wrong word is found."""
    assert ["is not serve"] == unknown_parts("localhost node port … is not serve")
    assert ["sync fails"] == unknown_parts("sync fails")
