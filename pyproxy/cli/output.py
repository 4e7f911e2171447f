"""How commands print: tables for people by rich, JSON and YAML documents for programs."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from itertools import chain
from typing import Any, Final

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

API_VERSION: Final = "pyproxy.io/v1alpha1"


class OutputFormat(Enum):
    """An output format; values as ``-o`` takes them."""

    TEXT = "text"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"


def document(kind: str, fields: Mapping[str, Any], output: OutputFormat) -> str:
    """Return an output document for programs, with ``apiVersion`` and ``kind`` first."""
    # As in kubectl's output, which lets a reader recognise the document by its first lines.
    values = {"apiVersion": API_VERSION, "kind": kind, **fields}
    if output is OutputFormat.YAML:
        import yaml  # noqa: PLC0415  # not needed for other formats

        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    return msgspec.json.format(msgspec.json.encode(values), indent=2).decode() + "\n"


def print_document(found: msgspec.Struct, output: OutputFormat) -> None:
    """Print an output document whose struct has its ``apiVersion`` and ``kind``."""
    values = msgspec.to_builtins(found)
    sys.stdout.write(document(values.pop("kind"), values, output))


def console() -> Console:
    """Return a console for standard output: colours on a terminal only, and lines that are not wrapped elsewhere."""
    # Without rich's own marks: names of objects and rules may contain brackets and words that it would colour.
    made = Console(highlight=False, markup=False, emoji=False)
    # In a pipe rich would assume 80 columns and wrap lines, which breaks grep.
    if not made.is_terminal:
        made.width = 10_000
    return made


def print_rows(columns: Sequence[str], rows: Iterable[Sequence[str | Text]]) -> None:
    """Print many rows of ASCII below a heading, as kubectl does: aligned columns, and lines that are never cut.

    A `Table` looks the same, but takes half a millisecond for a row, ten seconds for the Services of a large cluster.
    """
    # All cells are ASCII (`decode.fields.shown`), so a character is a column.
    target = console()
    cells = [[Text(column, "bold") for column in columns], *rows]
    widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)]
    for row in cells:
        gaps = [" " * (width - len(cell) + 2) for cell, width in zip(row, widths, strict=True)]
        if target.is_terminal:
            target.print(Text.assemble(*chain.from_iterable(zip(row, [*gaps[:-1], ""], strict=True))), soft_wrap=True)
        else:
            sys.stdout.write("".join(map("{}{}".format, row, gaps)).rstrip() + "\n")


def table(*columns: str) -> Table:
    """Return a table without borders whose columns are as wide as their content, as kubectl prints it."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        made.add_column(column, no_wrap=True, overflow="ignore")
    return made
