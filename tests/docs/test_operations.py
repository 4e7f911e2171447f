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


def unknown_parts(message: str) -> list[str]:
    """Return the constant parts of a message that no string of the program contains."""
    parts = (part.strip() for part in re.split("…|FILE|[:;] ", message))
    return [
        part for part in parts if len(part) >= SHORTEST_PART and not re.search(rf"{re.escape(part)}(?!\w)", constants())
    ]


@pytest.mark.parametrize("message", sorted(set(messages(PAGE.read_text()))))
def test_each_message_exists(message: str) -> None:
    """Each message that the page explains is a string of the program."""
    assert [] == unknown_parts(message)


def test_a_message_that_the_program_does_not_have() -> None:
    """A message with one wrong word is found."""
    assert ["is not serve"] == unknown_parts("localhost node port … is not serve")
    assert ["sync fails"] == unknown_parts("sync fails")
