"""The check of words finds phrases in prose, and ignores code and ordinary English."""

from pathlib import Path

import pytest

from tests.docs.words import EXCEPTIONS, findings


def phrases(folder: Path, name: str, text: str) -> list[str]:
    """Return the phrases found in a file with this text."""
    path = folder / name
    path.write_text(text)
    return [finding.phrase for finding in findings(path, folder)]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("page.md", "The kernel was\ntold of it.", ["told"]),
        ("code.py", '"""The text is no\naddress."""\n', ["is no"]),
        ("code.py", "x = 1  # not to be had here\n", ["to be had"]),
        ("code.py", "# Made\n# anew.\n", ["anew"]),
        ("code.py", 'message = f"{name} stands in {file}"\n', ["stands"]),
        ("code.py", 'def f() -> bool:\n    """Say whether it works."""\n', ["Say whether"]),
        ("unit.yaml", "key: told  # done without\n", ["done without"]),
    ],
)
def test_banned_phrases_are_found(tmp_path: Path, name: str, text: str, expected: list[str]) -> None:
    """Phrases are found in pages, docstrings, comments and messages, also across the end of a line."""
    assert expected == phrases(tmp_path, name, text)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("page.md", "There is no such Service. It is no longer served. Standard output, and a standalone VM."),
        ("page.md", "The function `told()` and\n\n    a block told of\n\n```\ntold\n```\n"),
        ("code.py", "told = 1\nothers = told\n"),
        ("code.py", 'message = f"{told} failed"\n'),
    ],
)
def test_the_rest_is_left_alone(tmp_path: Path, name: str, text: str) -> None:
    """Code, names and similar phrases are not reported."""
    assert [] == phrases(tmp_path, name, text)


def test_findings_name_the_line(tmp_path: Path) -> None:
    """A finding has the line in which its phrase begins."""
    path = tmp_path / "code.py"
    path.write_text('x = 1\n"""One.\n\nMade anew.\n"""\n')

    assert [4] == [finding.line for finding in findings(path, tmp_path)]


def test_exceptions_have_reasons() -> None:
    """Each exception has a reason."""
    assert [] == [row for row in EXCEPTIONS if not row[2].strip()]
