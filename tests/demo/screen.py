"""The output of the demo: a table with a section per feature, on a terminal or in a log.

Colours add no information; lines fit into 100 columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .check import Result, Section

WIDTH = 100
COLUMNS = {"from": 10, "sent": 30, "expected": 25, "answered": 26, "": 4}
"""Heading and width of each column."""


class Screen:
    """Prints to standard output, and counts results."""

    def __init__(self) -> None:
        """Start with no results."""
        self._console = Console(highlight=False)
        self._console.width = min(self._console.width, WIDTH) if self._console.is_terminal else WIDTH
        self.passed = 0
        self.failed = 0

    def say(self, text: str) -> None:
        """Print text without formatting."""
        self._console.print(Text(text), soft_wrap=True)

    @contextmanager
    def busy(self, text: str) -> Iterator[None]:
        """Show a progress indicator on a terminal."""
        with self._console.status(Text(text)):
            yield

    def head(self) -> None:
        """Print the column headings."""
        self._print_rows([[Text(name, style="bold") for name in COLUMNS]])

    def section(self, section: Section, results: Iterable[Result]) -> None:
        """Print a section with its results, and count them."""
        self._console.print()
        self._console.print(Text.assemble((section.title, "bold"), (f"  examples/{section.example}", "dim")))
        self._console.print(Text(section.law))
        self._print_rows(map(self._row, results))

    def logs(self, logs: Iterable[tuple[str, str]]) -> None:
        """Print the logs of the agents, by node name."""
        for node, log in logs:
            self.say(f"\nThe end of the agent's log on {node}:\n{log}")

    def sum_up(self, seconds: float) -> None:
        """Print how many checks passed and failed."""
        style = "bold red" if self.failed else "bold green"
        summary = Text(f"{self.passed} passed, {self.failed} failed", style=style)
        self._console.print()
        self._console.print(summary.append(f" in {seconds:.1f} s", style="default"))

    def _row(self, result: Result) -> list[Text]:
        verdict = Text("pass", style="green") if result.passed else Text("FAIL", style="bold red")
        self.passed += result.passed
        self.failed += not result.passed
        return [*map(Text, (result.client, result.sent, result.expected, result.answered)), verdict]

    def _print_rows(self, rows: Iterable[Iterable[Text]]) -> None:
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1, 0, 0))
        for width in COLUMNS.values():
            table.add_column(width=width)
        for row in rows:
            table.add_row(*row)
        self._console.print(table)
