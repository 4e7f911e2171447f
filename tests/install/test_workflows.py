"""The workflow files of the forge: they are valid, and what they build and test is in make targets."""

from __future__ import annotations

import re

import yaml

from .machine import ROOT, run

_WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yaml"))
_SETUP = ("apt-get ", "git config ", "gzip ", "cosign ", "gh release ")
"""Commands that prepare the machine of the forge, or pack, sign and publish what was built."""


def test_workflows_are_valid() -> None:
    """The program actionlint finds no problem; it checks shell commands with shellcheck as well."""
    actionlint = run("tests/install/actionlint/build.sh").strip()

    assert _WORKFLOWS
    assert "" == run(actionlint, *map(str, _WORKFLOWS))


def test_workflows_call_make_targets() -> None:
    """Each command is a target of the Makefile, or prepares or publishes."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in _WORKFLOWS:
        for job in yaml.safe_load(path.read_text())["jobs"].values():
            matrix = job.get("strategy", {}).get("matrix", {})
            called = {*matrix.get("target", ()), *(entry["target"] for entry in matrix.get("include", ()))}
            commands = [step["run"] for step in job["steps"] if "run" in step]
            called |= {command.split()[1] for command in commands if command.startswith("make ")} - {"${{"}
            assert called <= targets
            assert all(command.startswith(("make ", *_SETUP)) for command in commands), path.name
