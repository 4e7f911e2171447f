"""The container images of the cluster, made of Debian packages and of the programs of `build`, as archives for containerd.

The suite's images cannot be downloaded here, so images with the same names and the same programs replace them. The image of
pyproxy is the one of `tests.install.image`, built by buildah from the Containerfile.
"""

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.install.image import built_image, export
from tests.install.machine import ROOT

from .build import CACHE, cached, folder_of, source

PYPROXY = "localhost/pyproxy"
TAG = "0.1.0"
"""The tag in the manifests."""
PREVIOUS_TAG = "previous"
_PACKAGES = (
    *("bash", "bind9-dnsutils", "conntrack", "curl", "iperf", "iproute2", "iptables", "iputils-ping", "kmod"),
    *("netcat-openbsd", "nfacct", "nftables", "procps", "wget"),
)
"""What the suite's pods run, and what kube-proxy needs."""
_TOOLS = "localhost/pyproxy-e2e-tools"


@dataclass(frozen=True, slots=True)
class Image:
    """An image made of the tools, or of nothing, and of files."""

    name: str
    files: Mapping[str, Path]
    """By path in the image."""
    entrypoint: Sequence[str] = ()
    arguments: Sequence[str] = ()
    base: str = _TOOLS


def suite_archive(programs: Mapping[str, Path]) -> Path:
    """Return the archive with the images of suite, DNS and kube-proxy; the cache has it for the same programs and this file."""
    CACHE.mkdir(parents=True, exist_ok=True)
    # Programs are in folders named after everything they are built from: the path says as much as the content.
    names = ("agnhost", "coredns", "kube-proxy", "pause", "regression-issue-74839")
    paths = CACHE / "e2e-images-programs"
    paths.write_text("\n".join(str(programs[name]) for name in names))
    inputs = [paths, Path(__file__)]
    with cached("e2e-images", inputs) as (folder, is_new):
        if is_new:
            _build(_images(programs), folder / "suite.tar")
    return folder_of("e2e-images", inputs) / "suite.tar"


def pyproxy_archive(tag: str, folder: Path, tree: Path = ROOT) -> Path:
    """Build pyproxy's image from the Containerfile of a source tree, and write it to an archive."""
    archive = folder / f"pyproxy-{tag}.tar"
    export(built_image(tree), f"{PYPROXY}:{tag}", folder / "layout")
    _pack(folder / "layout", archive)
    return archive


def checkout(revision: str, into: Path) -> Path:
    """Write the source tree of a commit of this repository to a new folder."""
    into.mkdir()
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", revision], check=True, stdout=subprocess.PIPE).stdout
    subprocess.run(["tar", f"--directory={into}", "-xf", "-"], check=True, input=archive)
    return into


def suite_image(name: str) -> str:
    """Return the name of an image of the suite by its name in Go, such as Agnhost."""
    return f"registry.k8s.io/e2e-test-images/{_tags()[name]}"


def _images(programs: Mapping[str, Path]) -> list[Image]:
    kubernetes = source("kubernetes", "k8s.io/kubernetes")
    registry, agnhost = "registry.k8s.io", {"/agnhost": programs["agnhost"]}
    tags = _tags()
    tests = f"{registry}/e2e-test-images"
    porter = {
        f"/localhost.{kind}": kubernetes / f"test/images/agnhost/porter/localhost.{kind}" for kind in ("crt", "key")
    }
    # The suite calls a second copy, and CoreDNS in the same image.
    more = {"/agnhost-2": programs["agnhost"], "/coredns": programs["coredns"]}
    sleep = ("sleep", "infinity")
    regression = "regression-issue-74839"
    return [
        Image(f"{tests}/{tags['Agnhost']}", agnhost | more | porter, ["/agnhost"], ["pause"]),
        Image(f"{tests}/{tags['Nginx']}", agnhost, ["/agnhost"], ["test-webserver"]),
        Image(f"{tests}/{tags['BusyBox']}", {}, (), ["sh"]),
        Image(f"{tests}/{tags['GlibcDnsTesting']}", {}, (), sleep),
        Image(f"{tests}/{tags['RegressionIssue74839']}", {f"/{regression}": programs[regression]}, [f"/{regression}"]),
        Image(f"{registry}/build-image/{tags['DistrolessIptables']}", {}, (), sleep),
        Image(f"{registry}/coredns/coredns:v1", {"/coredns": programs["coredns"]}, ["/coredns"]),
        Image(f"{registry}/kube-proxy:e2e", {"/usr/local/bin/kube-proxy": programs["kube-proxy"]}),
        Image(f"{registry}/{tags['Pause']}", {"/pause": programs["pause"]}, ["/pause"], base="scratch"),
    ]


def _tags() -> dict[str, str]:
    """Return name and tag of the suite's images by their name in Go."""
    manifest = source("kubernetes", "k8s.io/kubernetes") / "test/utils/image/manifest.go"
    pattern = r'configs\[(\w+)\] = Config\{[^,]*, "([^"]*)", "([^"]*)"\}'
    return {name: f"{image}:{tag}" for name, image, tag in re.findall(pattern, manifest.read_text())}


def _build(images: Sequence[Image], archive: Path) -> None:
    """Build images in a storage of their own, which is removed afterwards, and write them to an archive."""
    with tempfile.TemporaryDirectory(prefix="e2e-images-", dir=archive.parent) as name:
        directory = Path(name)
        buildah = _Buildah(directory)
        _make_tools(buildah, directory)
        for image in images:
            container = buildah("from", image.base)
            for path, file in image.files.items():
                buildah("copy", "--quiet", container, str(file), path)
            commands = (
                f"--entrypoint={json.dumps(list(image.entrypoint))}",
                f"--cmd={json.dumps(list(image.arguments))}",
            )
            buildah("config", *commands, container)
            buildah("commit", "--quiet", "--rm", container, image.name)
            buildah("push", "--quiet", image.name, f"oci:{directory / 'layout'}:{image.name}")
        _pack(directory / "layout", archive)
        buildah("rmi", "--all", "--force")


class _Buildah:
    """Calls of buildah with a storage of its own."""

    def __init__(self, directory: Path) -> None:
        self._options = [f"--root={directory}/storage", f"--runroot={directory}/run"]

    def __call__(self, *arguments: str) -> str:
        command = ["nice", "buildah", *self._options, *arguments]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def _make_tools(buildah: _Buildah, directory: Path) -> None:
    """Make the image that most images are based on: a Debian with the programs that pods run."""
    tree, uploads, wgetrc = directory / "tools.tar", directory / "uploads", directory / "wgetrc"
    paths = (f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "info", "locale", "man"))
    subprocess.run(
        [
            *("nice", "mmdebstrap", "--variant=minbase", "--quiet", f"--include=usr-is-merged,{','.join(_PACKAGES)}"),
            *("--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr", "--dpkgopt=force-unsafe-io", *paths),
            '--customize-hook=rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/*',
            *("bookworm", str(tree)),
        ],
        check=True,
    )
    uploads.mkdir()
    # The suite expects busybox's wget, which does not try again; Debian's wget would, and a test would count too many requests.
    wgetrc.write_text("tries = 1\n")
    container = buildah("from", "scratch")
    buildah("add", "--quiet", container, str(tree), "/")
    buildah("copy", "--quiet", container, str(uploads), "/uploads")
    buildah("copy", "--quiet", container, str(wgetrc), "/etc/wgetrc")
    buildah("commit", "--quiet", "--rm", container, _TOOLS)
    tree.unlink()


def _pack(layout: Path, archive: Path) -> None:
    """Pack an OCI layout so that containerd imports each image under its full name."""
    index = json.loads((layout / "index.json").read_text())
    for each in index["manifests"]:
        name = each["annotations"]["org.opencontainers.image.ref.name"]
        each["annotations"]["io.containerd.image.name"] = name
    (layout / "index.json").write_text(json.dumps(index))
    subprocess.run(["tar", f"--directory={layout}", "-cf", str(archive), "."], check=True)
    with suppress(FileNotFoundError):
        shutil.rmtree(layout)
