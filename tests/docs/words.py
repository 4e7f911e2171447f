"""Words and phrases that the project does not use: ``python -m tests.docs.words`` lists where they occur.

It checks prose: pages, and the comments, docstrings and messages of Python files. It ignores code in backticks, code
blocks of Markdown, and names in code. ``--counts`` prints the number of findings for each file. A justified finding has
a row in `EXCEPTIONS`, with the reason. `make lint` runs it.
"""

import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
FILES = (
    *(ROOT / name for name in ("README.md", "Makefile", "Containerfile", "Vagrantfile", "pyproject.toml")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *(
        path
        for folder in ("manifests", "examples", "packaging", "systemd", "vagrant")
        for path in sorted((ROOT / folder).rglob("*"))
        if path.is_file() and path.suffix != ".json"
    ),
    *sorted((ROOT / "pyproxy").rglob("*.py")),
    *sorted((ROOT / "tests").rglob("*.py")),
)

BANNED = {
    # Case is ignored; a space matches any white space, including line ends.
    "say which: reported, matched by, notified, logged": r"\btold\b",
    "'is not a valid X', 'without X', 'not X'": r"(?<!there\s)\b(?:is|are|was|were) no (?!longer\b|more\b|less\b|later\b|one\b)",
    "available, supported": r"\bto be had\b",
    "because there is no X": r"\bfor want of\b",
    "name whose: 'kube-proxy's as well'": r"\b(?:its|ours|theirs|kube-proxy's),? too\b",
    "name the process, client or user": r"\b(?:somebody|nobody|anybody|everybody|whoever)\b",
    "other agents, other tools, foreign rules": r"\bothers\b",
    "name the invariant": r"\blaws?\b",
    "is, is written in, runs in": r"\b(?:stands|stand(?!-?in|alone|ard|-alone|by)|stood|lives?(?=\s+(?:in|on|at|here|there|behind|beside|as|for)\b))\b",
    "recreated, again": r"\banew\b",
    "unavailable; will retry": r"\bdone without\b",
    "periodically, occasionally": r"\bnow and then\b",
    "quarantined, skipped": r"\b(?:set aside|passed? over)\b",
    "requests, sends a request to": r"\basks? for\b|\basked for\b",
    "Record": r"\b(?:take|takes|taking) note\b",
    "Return whether": r"\A\W*(?:Say|Tell) (?:of|whether|if|by|what|which|why|how|who)\b",
    "reports, returns, states": r"\b(?:kernel|object|Node|server|file|flag|configuration|it|that) (?:tells|tell)\b|\b(?:kernel|Node|it) says\b",
    "side-by-side": r"\b(?:on trial|(?:a|the|of a|no) trial)\b",
    "running kube-proxy": r"\bpredecessors?\b",
    "stale rules": r"\bleft-?overs?\b",
    "remove": r"\bretir(?:e|es|ed|ing)\b",
    "node, environment": r"\bsurroundings\b",
    "change monitor": r"\bwitness(?:es)?\b",
    "operations": r"\bdeeds?\b",
    "handle, socket, interface": r"\bdoors?\b",
    "mark as stale": r"\bdistrust(?:s|ed)?\b",
    "changed externally, interrupts": r"\bdisturb(?:s|ed|ance)?\b",
    "shutdown": r"\b(?:an|the) ending\b",
    "Switch to pyproxy, roll back to kube-proxy": r"\bthe way back\b",
    "data plane, packet path": r"\bwhat packets meet\b",
    "tested against": r"\bheld (?:against|to)\b",
    "taken over": r"\bcome to rest\b",
    "start the sentence with its subject": r"\A\W*(?:That|Which|Whose|Who) (?!is\b)\w+",
    "Nothing, or name the case": r"\bnothing of (?:ours|theirs|its)\b|\bnone of (?:ours|its|theirs)\b",
    "belongs to": r"\bwhose it is\b|\b(?:is|are) (?:kube-proxy's|others'|the kubelet's|the agent's)(?=[.,;:)]|$)",
    "again and again: repeatedly": r"\bagain and again\b",
    "for a while, temporarily": r"\bfor the sake\b|\bfor (?:its|their|whose|another \w+'s) sake\b",
}
"""What to write instead, and a pattern of the unused phrase."""

PATTERNS = {
    hint: re.compile(pattern.replace(" ", r"\s+"), re.IGNORECASE | re.MULTILINE) for hint, pattern in BANNED.items()
}

EXCEPTIONS: tuple[tuple[str, str, str], ...] = (
    ("tests/docs/words.py", ".*", "the list itself"),
    ("tests/docs/test_words.py", ".*", "examples of what is found"),
    ("tests/cli/test_explain.py", "which has", "part of an expected sentence, where it follows the name of a Service"),
)
"""A file (a glob), a regular expression that the whole finding matches, and the reason why it stays."""

_BLOCK = re.compile(r"^```.*?^```[^\n]*$|^(?: {4}|\t)[^\n]*$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"``[^`]+``|`[^`\n]+`|\]\([^)]*\)|<!--.*?-->", re.DOTALL)
_PREFIX = re.compile(r"(?i)^[rbuf]*(\"\"\"|'''|\"|')")


class Finding(NamedTuple):
    """One phrase in one file."""

    file: str
    line: int
    phrase: str
    hint: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.phrase!r}; write: {self.hint}"


def _blanked(pattern: re.Pattern[str], text: str) -> str:
    """Return a text with all matches replaced by a placeholder; the number of lines stays the same."""
    return pattern.sub(lambda match: "X" + "\n" * match[0].count("\n"), text)


def _texts(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the prose in a file, with the number of the first line of each part."""
    if path.suffix == ".md":
        yield 1, _blanked(_CODE, _blanked(_BLOCK, path.read_text()))
    elif path.suffix == ".py":
        yield from _python_texts(path)
    else:
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
            _, mark, comment = line.partition("#")
            if mark:
                yield number, _blanked(_CODE, comment.strip())


def _python_texts(path: Path) -> Iterator[tuple[int, str]]:
    """Yield comments and strings; consecutive comment lines are one text."""
    comment: list[str] = []
    start = last = 0
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type == tokenize.COMMENT:
                text = token.string.lstrip("#: ")
                if comment and token.start[0] == last + 1 and token.line.lstrip().startswith("#"):
                    comment.append(text)
                else:
                    if comment:
                        yield start, _blanked(_CODE, "\n".join(comment))
                    start, comment = token.start[0], [text]
                last = token.start[0]
            elif token.type == tokenize.STRING:
                opening = _PREFIX.match(token.string)
                text = token.string[opening.end() : -len(opening[1])] if opening else token.string
                # Placeholders of f-strings are code.
                yield token.start[0], _blanked(_CODE, re.sub(r"\{[^{}\n]*\}", "X", text))
    if comment:
        yield start, _blanked(_CODE, "\n".join(comment))


def findings(path: Path, root: Path = ROOT) -> Iterator[Finding]:
    """Yield the banned phrases in a file, except the exceptions."""
    name = path.relative_to(root)
    allowed = [re.compile(phrase, re.IGNORECASE) for glob, phrase, _ in EXCEPTIONS if name.match(glob)]
    for first, text in _texts(path):
        for hint, pattern in PATTERNS.items():
            for match in pattern.finditer(text):
                phrase = " ".join(match[0].split())
                if not any(one.fullmatch(phrase) for one in allowed):
                    yield Finding(str(name), first + text.count("\n", 0, match.start()), phrase, hint)


def main() -> int:
    """Print the findings; return the exit status."""
    found = [finding for path in FILES if path.exists() for finding in findings(path)]
    if "--counts" in sys.argv[1:]:
        counts = Counter(finding.file for finding in found)
        sys.stdout.writelines(f"{count:5} {name}\n" for name, count in sorted(counts.items()))
        sys.stdout.write(f"{len(found):5} in total\n")
    else:
        sys.stderr.writelines(f"{finding}\n" for finding in found)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
