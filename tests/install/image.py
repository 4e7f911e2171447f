"""The container image of this tree, built by buildah on the Debian of debian.sh, and cached in .cache/containers.

The image always matches the current tree; it is not rebuilt for the same files.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .machine import ROOT, run

STORAGE = (ROOT / ".cache").resolve() / "containers"
BASE_TAR = ROOT / ".cache" / "debian" / "base.tar"
_BASE = "localhost/debian"
_BUILDAH = ("buildah", f"--root={STORAGE}", f"--runroot={STORAGE}-run")
_SOURCES = ("Containerfile", "requirements-build.lock", "requirements.lock", "pyproject.toml", "packaging", "pyproxy")
GIT_COMMIT = "0123456789abcdef0123456789abcdef01234567"
"""The commit that the image says it was built from; a cached image may be older than the tree's own."""
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
_IN_BUILD = "/run/host-certificates.crt"


def built_image(tree: Path = ROOT) -> str:
    """Build the image of a source tree if necessary, and return its name in the storage, which keeps one image of each tree."""
    repository = "localhost/pyproxy" if tree == ROOT else "localhost/pyproxy-other"
    base, name = f"{_BASE}:{_stamp()}", f"{repository}:{_digest(tree)}"
    present = run(_BUILDAH, "images", "--format={{.Name}}:{{.Tag}}").splitlines()
    if name not in present:
        if base not in present:
            run(_BUILDAH, "rmi", "--all", "--force")
            _import_base(base)
        elif old := [image for image in present if image.startswith(f"{repository}:")]:
            run(_BUILDAH, "rmi", "--force", *old)
        _build(name, base, tree)
    return name


def export(image: str, name: str, layout: Path) -> None:
    """Write an image of the storage to an OCI layout, under another name."""
    run(_BUILDAH, "push", "--quiet", image, f"oci:{layout}:{name}")


def labels(image: str) -> dict[str, str]:
    """Return the labels of an image."""
    inspected = json.loads(run(_BUILDAH, "inspect", "--type=image", image))
    found: dict[str, str] = inspected["OCIv1"]["config"]["Labels"]
    return found


@contextmanager
def mounted_image() -> Iterator[Path]:
    """Build the image if necessary, and return its root file system."""
    container = run(_BUILDAH, "from", built_image()).strip()
    try:
        yield Path(run(_BUILDAH, "mount", container).strip())
    finally:
        run(_BUILDAH, "rm", container)


def size_bytes(tree: Path) -> int:
    """Return the size of the files of a directory, with hard links counted once."""
    return int(run("du", "--summarize", "--bytes", "--one-file-system", str(tree)).split()[0])


def _stamp() -> str:
    return hashlib.sha256(Path(BASE_TAR).with_name(".stamp").read_bytes()).hexdigest()[:12]


def _digest(tree: Path) -> str:
    digest = hashlib.sha256(_stamp().encode())
    for source in _SOURCES:
        top = tree / source
        for path in sorted(top.rglob("*") if top.is_dir() else [top]):
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(f"{path.relative_to(tree)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _import_base(name: str) -> None:
    container = run(_BUILDAH, "from", "scratch").strip()
    run(_BUILDAH, "add", "--quiet", container, str(BASE_TAR), "/")
    run(_BUILDAH, "commit", "--quiet", "--rm", container, name)


def _build(name: str, base: str, tree: Path) -> None:
    """Build the image as a user does, with the certificates and the package cache of this machine."""
    with tempfile.TemporaryDirectory(prefix="pyproxy-image-") as directory:
        settings = Path(directory, "pip.conf")
        settings.write_text(f"[global]\ncert = {_IN_BUILD}\n")
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "pip")
        cache.mkdir(parents=True, exist_ok=True)
        volumes = {settings: "/etc/pip.conf:ro", _CERTIFICATES: f"{_IN_BUILD}:ro", cache: "/root/.cache/pip"}
        flags = ("--isolation=chroot", *(f"--volume={ours}:{theirs}" for ours, theirs in volumes.items()))
        settings_of_build = {
            "BASE": base,
            "BUILDAH": " ".join(_BUILDAH),
            "IMAGE_FLAGS": " ".join(flags),
            "TREE": str(tree),
            "GIT_COMMIT": GIT_COMMIT,
            "SOURCE_DATE_EPOCH": "1",
        }
        run("env", *(f"{key}={value}" for key, value in settings_of_build.items()), "packaging/image.sh", name)
