"""The table of test and column from ginkgo's reports, and the list of tests that did not run, each with its reason."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .suite import EXCLUDED, EXCLUDED_IN_NFTABLES, SLOW, test_name

_WORDS = {"passed": "passed", "failed": "**failed**", "skipped": "skipped"}


@dataclass(frozen=True, slots=True)
class Result:
    """The result of one test."""

    state: str
    """Ginkgo's word: passed, failed, skipped, ..."""
    seconds: float
    message: str
    """Why it failed or was skipped."""


def results(reports: Iterable[Path]) -> dict[str, Result]:
    """Return the results of ginkgo's JSON reports by name of the test; a test that no pattern selects has none."""
    found: dict[str, Result] = {}
    for report in reports:
        for suite in json.loads(report.read_text()):
            for spec in suite["SpecReports"] or ():
                message = spec.get("Failure", {}).get("Message", "")
                if spec["LeafNodeType"] == "It" and (spec["State"] != "skipped" or message):
                    found[test_name(spec)] = Result(spec["State"], spec["RunTime"] / 1e9, message)
    return found


def counts(column: Mapping[str, Result]) -> str:
    """Return the number of results by state, such as ``143 passed, 1 failed``."""
    found = Counter(result.state for result in column.values())
    return ", ".join(f"{found[state]} {state}" for state in sorted(found, key=lambda state: (state != "passed", state)))


def table(columns: Mapping[str, Mapping[str, Result]]) -> str:
    """Return a Markdown table with a row for each test and a column for each proxy and mode; times are in seconds."""
    names = sorted(set[str]().union(*columns.values()))
    head = [f"| test | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    rows = (
        f"| {short(name)} | {' | '.join(_cell(column.get(name)) for column in columns.values())} |" for name in names
    )
    sums = f"| **all** | {' | '.join(counts(column) for column in columns.values())} |"
    return "\n".join([*head, *rows, sums]) + "\n"


def not_run(all_tests: Iterable[str], columns: Mapping[str, Mapping[str, Result]]) -> str:
    """Return a Markdown list of the network tests that ran in no column, each with its reason."""
    ran = set[str]().union(*columns.values())
    lines = [f"- {short(name)}: {reason(name)}" for name in sorted(set(all_tests) - ran) if "[sig-network]" in name]
    skipped = {
        name: result.message
        for column in columns.values()
        for name, result in column.items()
        if result.state == "skipped"
    }
    lines += [f"- {short(name)}: skipped by the suite: {message}" for name, message in sorted(skipped.items())]
    return "\n".join(lines) + "\n"


def reason(name: str) -> str:
    """Return why a test was not selected."""
    for pattern, text in (EXCLUDED | SLOW | EXCLUDED_IN_NFTABLES).items():
        if re.search(pattern, name):
            return text
    return "another subject than Services, or not selected in this run"


def short(name: str) -> str:
    """Return the name of a test without the part that all have, as a cell of a table."""
    return name.replace("[sig-network] ", "").replace("|", "\\|")


def _cell(result: Result | None) -> str:
    return f"{_WORDS.get(result.state, result.state)} {result.seconds:.0f}" if result else ""


def failures(column: Mapping[str, Result]) -> Sequence[str]:
    """Return the failed tests."""
    return sorted(name for name, result in column.items() if result.state not in {"passed", "skipped"})
