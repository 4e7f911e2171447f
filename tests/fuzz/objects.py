"""Valid objects to damage: all that examples and tests of this repository have."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyproxy.manifests.manifest import API_VERSIONS
from pyproxy.yaml_documents import YamlDocument, yaml_documents

_ROOT = Path(__file__).parents[2]
_FOLDERS = ("examples", "tests/inputs", "tests/golden", "tests/packets/broken/objects", "tests/fuzz/corpus")
FILES = sorted(path for folder in _FOLDERS for path in (_ROOT / folder).rglob("*.yaml"))


def _objects() -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in API_VERSIONS}
    for path in FILES:
        for document in yaml_documents(path.read_text()):
            tree = document.tree if isinstance(document, YamlDocument) else None
            for item in tree.get("items", [tree]) if isinstance(tree, dict) else ():
                if item.get("kind") in found:
                    found[item["kind"]].append(item)
    return found


OBJECTS: Mapping[str, list[dict[str, Any]]] = _objects()
"""By kind."""
