"""The check of the docs reports broken references, and accepts valid ones."""

from pathlib import Path

import pytest

from tests.docs import check

PAGE = check.ROOT / "docs" / "contributing.md"


def problems(text: str) -> list[str]:
    """Return the problems of a page with this text."""
    return [
        problem for find in (check._links, check._paths, check._targets, check._flags) for problem in find(PAGE, text)
    ]


@pytest.mark.parametrize(
    "text",
    [
        "[here](no-such-page.md)",
        "[here](cli.md#no-such-heading)",
        "`pyproxy/agent/no_such_module.py`",
        "`tests/no-such-folder`",
        "pyproxy dump-rules --manifests examples/no-such-file.yaml",
        "`make no-such-target`",
        "    make no-such-target        # does nothing",
        "`--no-such-flag`",
        "`pyproxy cleanup --cluster-cidr 10.0.0.0/8`",
        "    pyproxy run --no-such-flag",
    ],
)
def test_broken_references_are_reported(text: str) -> None:
    """A broken reference is one problem."""
    assert len(problems(text)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "[here](cli.md#pyproxy-run), [there](../README.md) and [away](https://kubernetes.io)",
        "`pyproxy/decode/*.py`, `tests/packets`, `docs/cli.md`",
        "`make test` and\n    make install        # to begin with",
        "`--cluster-cidr=10.0.0.0/8`, `pyproxy cleanup --kube-proxy`, `pyproxy run --manifests DIRECTORY`",
    ],
)
def test_valid_references_are_accepted(text: str) -> None:
    """A valid reference is not a problem."""
    assert [] == problems(text)


@pytest.mark.parametrize(
    ("row", "count"),
    [
        ("| here | there | `tests/docs/test_check.py` |", 0),
        ("| here | there | `tests/docs/test_check.py::test_valid_references_are_accepted` |", 0),
        ("| here | there | `test_valid_references_are_accepted` |", 0),
        ("| here | there | `tests/docs/test_check.py::test_no_such_test` |", 1),
        ("| here | there | `test_no_such_test` |", 1),
        ("| here | there | `tests/docs/test_no_such_file.py` |", 1),
        ("| here | there | nothing |", 1),
    ],
)
def test_a_difference_names_its_test(row: str, count: int) -> None:
    """Each row of the table of differences, except its head, has to name an existing test."""
    assert count == len([*check._differences(f"# Head\n\n| kube-proxy | pyproxy | test |\n|---|---|---|\n{row}\n")])


def test_each_page_is_checked() -> None:
    """All pages are checked, including the decisions."""
    assert {Path("README.md"), Path("docs/decisions/001-hairpin.md")} < {
        page.relative_to(check.ROOT) for page in check.PAGES
    }
