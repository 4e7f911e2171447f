"""Damaged and half-written files: every problem names the file, and a complete file is read as if it had always been."""

import os
from dataclasses import replace
from itertools import count
from pathlib import Path
from random import Random

import yaml

from pyproxy.manifests.file_objects import combine
from pyproxy.manifests.files import _Folder
from pyproxy.manifests.manifest import Manifest, read_manifest
from tests.fuzz.conftest import Sources
from tests.fuzz.mutation import DEEP, damaged, damaged_bytes, packed
from tests.fuzz.objects import FILES, OBJECTS
from tests.fuzz.test_objects import is_one_line

TEXTS = [path.read_bytes() for path in FILES]
WHOLE = [data for data in TEXTS if read_manifest("", data).is_whole]


def content(source: Random) -> bytes:
    """Return the content of a file: damaged objects as JSON or YAML, or a damaged file, perhaps the first half of it."""
    trees = [damaged(source.choice(OBJECTS[source.choice(list(OBJECTS))]), source) for _ in range(source.randrange(4))]
    match source.randrange(5):
        case 0:
            return packed({"kind": source.choice(("List", "ServiceList", "Service")), "items": trees}, source)
        case 1:
            return b"\n".join(packed(tree, source) for tree in trees)
        case 2:
            dumped = yaml.safe_dump_all(trees, allow_unicode=True).replace(DEEP, "[" * 50 + "]" * 50)
            return dumped.encode(errors="replace")
        case 3:
            return damaged_bytes(source.choice(TEXTS), source, most=10)
        case _:
            data = source.choice(TEXTS)
            return data[: source.randrange(len(data) + 1)]


def check(manifest: Manifest, file: str) -> None:
    """Check that each problem names file, object and field, in one line."""
    for problem in combine((manifest,)).problems:
        assert str(problem).startswith(f"{file}"), problem
        assert is_one_line(str(problem)), problem
        assert problem.error.subject
        assert problem.error.reason


def test_content(sources: Sources) -> None:
    """Any content of a file is read without an exception, and all that is wrong with it is reported in its place."""
    for source in sources(400):
        check(read_manifest("objects.yaml", content(source), with_pods=source.random() < 0.3), "objects.yaml")


def test_half_written_files(sources: Sources, tmp_path: Path) -> None:
    """After any damaged versions of a file, its last one gives the same objects and problems as a first read of it."""
    path, times = tmp_path / "objects.yaml", count()

    def write(data: bytes) -> None:
        # Each with a later time, because so many writes are closer together than the time stamps of files.
        path.write_bytes(data)
        os.utime(path, ns=(0, next(times)))

    for source in sources(60):
        last = source.choice(WHOLE)
        write(last[: source.randrange(len(last))])
        folder = _Folder(path, "")
        folder.read()
        for data in (*(content(source) for _ in range(source.randrange(3))), last):
            write(data)
            folder.read_changes(folder.look()[0])
        expected, found = read_manifest(str(path), last), folder._manifests[str(path)]
        assert replace(expected, problems=()) == replace(found, problems=())
        assert list(map(str, expected.problems)) == list(map(str, found.problems))
