#!/usr/bin/env python3
"""Prints a software bill of materials (CycloneDX 1.6) of the dependencies in requirements.lock: ``sbom.py VERSION``.

The hashes are those of all files of a version that the lock file allows, of which an installation uses one. The time is that
of SOURCE_DATE_EPOCH, and the serial number is made from the content, so that two builds give the same file.
"""

import json
import os
import re
import sys
import time
import uuid
from pathlib import Path
from typing import Any

LOCK = Path(__file__).parents[1] / "requirements.lock"
_PACKAGE = re.compile(r"^([\w.-]+)==(\S+?)(?: ; .*?)? \\$((?:\n    --hash=sha256:[0-9a-f]+(?: \\)?$)+)", re.MULTILINE)


def components(lock: str) -> list[dict[str, Any]]:
    """Return the packages of a lock file."""
    return [
        {
            "type": "library",
            "bom-ref": f"pkg:pypi/{name}@{version}",
            "name": name,
            "version": version,
            "purl": f"pkg:pypi/{name}@{version}",
            "externalReferences": [
                {
                    "type": "distribution",
                    "url": f"https://pypi.org/simple/{name}/",
                    "hashes": [
                        {"alg": "SHA-256", "content": text}
                        for text in re.findall("sha256:(.*?)(?: |$)", hashes, re.MULTILINE)
                    ],
                }
            ],
        }
        for name, version, hashes in _PACKAGE.findall(lock)
    ]


def bill_of_materials(lock: str, version: str, seconds: int) -> dict[str, Any]:
    """Return the document for a version of pyproxy."""
    root = f"pkg:pypi/pyproxy-node@{version}"
    found = components(lock)
    licenses = [{"license": {"id": "Apache-2.0"}}]
    main = {"type": "application", "bom-ref": root, "name": "pyproxy-node", "version": version, "purl": root}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, version + lock)}",
        "version": 1,
        "metadata": {
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds)),
            "component": {**main, "licenses": licenses},
        },
        "components": found,
        "dependencies": [{"ref": root, "dependsOn": [each["bom-ref"] for each in found]}],
    }


if __name__ == "__main__":
    now = int(os.environ.get("SOURCE_DATE_EPOCH") or time.time())
    print(json.dumps(bill_of_materials(LOCK.read_text(), sys.argv[1], now), indent=2))  # noqa: T201 - the output
