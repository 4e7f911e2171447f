"""Check of references in the docs: ``python -m tests.docs.check`` lists those that do not exist.

It checks links and headings, files, make targets, commands and flags of pyproxy, and tests. It cannot check whether the
text is true. docs/cli.md is generated from the program (`cli_page`).
"""

import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from pyproxy.cli.flags import Flag
from pyproxy.cli.program import COMMANDS, load_command

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
CODE = tuple(path for folder in ("pyproxy", "tests") for path in sorted((ROOT / folder).rglob("*.py")))
DIFFERENCES = ROOT / "docs" / "differences.md"
_FLAGS = {
    name: {flag.long for flag in load_command(name).params if isinstance(flag, Flag)} | {"help"} for name in COMMANDS
}
_EVERY_FLAG = set().union(*_FLAGS.values())
_FOREIGN_FLAGS = {
    *("noflush", "ctstate", "update-golden", "long"),
    *(
        "pod-network-cidr",
        "skip-phases",
        "apiserver-advertise-address",
        "node-ip",
        "disable-kube-proxy",
        "take-ownership",
        "allow-downgrades",
    ),
    *("to-revision", "merge", "docs"),
}
"""Flags of other programs that docs mention."""

_LINK = re.compile(r"\[[^\]]*\]\((?!https?:|mailto:)([^)#]*)(?:#([^)]*))?\)")
_INLINE = re.compile(r"`([^`\n]+)`")
_PATH = re.compile(r"(?:pyproxy|tests|docs|examples)/[\w./*-]*[\w*/]")
_PAGE = re.compile(r"docs/[\w/-]+\.md")
_TEST = re.compile(r"(tests/[\w/]+\.py)(?:::(test_\w+))?|(?<![\w/])(test_\w+)(?![\w.])")
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
_COMMAND = re.compile(
    r"(?<![/=])(?<!helm install )(?<!helm upgrade )\b(?:pyproxy|kube-proxy) ((?:[\w-]+ )?(?:[^`\n#|]*))"
)


def main() -> int:
    """Print the problems and return the exit status."""
    problems = [*_problems()]
    sys.stderr.writelines(f"{problem}\n" for problem in problems)
    return 1 if problems else 0


def _problems() -> Iterator[str]:
    for page in PAGES:
        name, text = page.relative_to(ROOT), page.read_text()
        for check in (_links, _paths, _targets, _flags):
            yield from (f"{name}: {problem}" for problem in check(page, text))
    for path in CODE:
        for page_name in set(_PAGE.findall(path.read_text())):
            if not (ROOT / page_name).exists():
                yield f"{path.relative_to(ROOT)}: {page_name} does not exist"
    if DIFFERENCES.exists():
        yield from (f"docs/differences.md: {problem}" for problem in _differences(DIFFERENCES.read_text()))


def _links(page: Path, text: str) -> Iterator[str]:
    for target, heading in _LINK.findall(text):
        path = page.parent / target if target else page
        if not path.exists():
            yield f"the target of the link {target} does not exist"
        elif heading and heading not in map(_anchor, _HEADING.findall(path.read_text())):
            yield f"{target}#{heading}: this heading does not exist"


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def _paths(_: Path, text: str) -> Iterator[str]:
    for code in _INLINE.findall(text):
        if _PATH.fullmatch(code) and not [*ROOT.glob(code.rstrip("/"))]:
            yield f"{code} does not exist"
    for path in re.findall(r"\bexamples/[\w-]+\.yaml", text):
        if not (ROOT / path).exists():
            yield f"{path} does not exist"


def _targets(_: Path, text: str) -> Iterator[str]:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for target in re.findall(r"(?:`|^ {4})make ([a-z0-9-]+)", text, re.MULTILINE):
        if target not in targets:
            yield f"make {target}: this target does not exist"


def _flags(page: Path, text: str) -> Iterator[str]:
    if page.name == "cli.md":  # the output of --help
        return
    for code in _INLINE.findall(text):
        for flag in re.findall(r"^--([a-z][\w-]*)", code):
            if flag.replace("_", "-") not in _EVERY_FLAG | _FOREIGN_FLAGS:
                yield f"--{flag}: this flag does not exist"
    for words in _COMMAND.findall(text):
        command = words.split(" ", 1)[0]
        for flag in re.findall(r"(?<!\S)--([a-z][a-z-]*)", words):
            if flag not in _FLAGS.get(command, _EVERY_FLAG):
                yield f"pyproxy {command} has no flag --{flag}"


def _differences(text: str) -> Iterator[str]:
    """Yield the rows, apart from table heads, that do not name an existing test."""
    heads = set(re.findall(r"(?m)^(\|.*)\n\| *-", text))
    for row in (row for row in re.findall(r"(?m)^\|(?! *-).*$", text) if row not in heads):
        tests = [found.groups() for found in _TEST.finditer(row)]
        if not tests:
            yield f"no test: {row}"
        for path, name, alone in tests:
            if path and not (ROOT / path).exists():
                yield f"{path} does not exist"
            elif name and f"def {name}(" not in (ROOT / path).read_text():
                yield f"{path} has no {name}"
            elif alone and alone not in _every_test():
                yield f"there is no {alone}"


@cache
def _every_test() -> frozenset[str]:
    return frozenset(name for path in CODE for name in re.findall(r"def (test_\w+)\(", path.read_text())) | {
        path.stem for path in CODE
    }


if __name__ == "__main__":
    sys.exit(main())
