"""Builds the programs of the e2e cluster from the Go modules in tools/, once for each state of a module.

Like the programs of tests/cluster they are kept outside the checkout, in a folder named after everything they are built from.
"""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
TOOLS = Path(__file__).parent / "tools"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pyproxy-tests"
# API server, etcd, kubectl and kube-proxy, built by tests/cluster/build.sh.
PEERS = REPOSITORY / ".cache/bin"
MODULES = ("pause", "coredns", "containerd", "kubernetes")
# A Go that is newer than the one on PATH must not be downloaded: tests/cluster/build.sh installs one from a lock file if needed.
ENVIRONMENT = {**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local"}


def go(module: str, *arguments: str) -> str:
    """The output of a go command in one of the modules."""
    installed = REPOSITORY / ".venv/bin/go"
    program = str(installed) if installed.exists() else "go"
    return subprocess.run(
        ["nice", program, *arguments],
        cwd=TOOLS / module,
        env=ENVIRONMENT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout


def version(module: str, of: str) -> str:
    """The version of a dependency, such as v1.37.2."""
    return go(module, "list", "-m", "-f", "{{.Version}}", of).strip()


def source(module: str, of: str) -> Path:
    """The folder in the module cache with the source of a dependency."""
    return Path(json.loads(go(module, "mod", "download", "-json", f"{of}@{version(module, of)}"))["Dir"])


def programs() -> dict[str, Path]:
    """Every program by name, built if it is not in the cache."""
    found = {path.name: path for path in PEERS.iterdir()}
    for module in MODULES:
        with cached(f"e2e-{module}", files(TOOLS / module)) as (folder, is_new):
            if is_new:
                build(module, folder)
        found |= {path.name: path for path in folder_of(f"e2e-{module}", files(TOOLS / module)).iterdir()}
    return found


def files(folder: Path) -> list[Path]:
    """Everything that the programs of a module are built from, and this file."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def folder_of(name: str, inputs: list[Path]) -> Path:
    """The folder in the cache for things made of the inputs."""
    digest = hashlib.sha256()
    for path in inputs:
        digest.update(f"{path.name} {path.stat().st_size}\n".encode() + path.read_bytes())
    return CACHE / f"{name}-{digest.hexdigest()[:16]}"


@contextmanager
def cached(name: str, inputs: list[Path]) -> Iterator[tuple[Path, bool]]:
    """A folder to fill and whether it must be; two runs that start at once fill it once, and an interrupted run leaves none."""
    folder = folder_of(name, inputs)
    part = folder.with_suffix(".part")
    CACHE.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            yield folder, False
            return
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        yield part, True
        part.rename(folder)


def build(module: str, into: Path) -> None:
    """Build the tools of a module, or the program that it is."""
    tools = (
        go(module, "list", "-f", "{{.ImportPath}}", "tool").split() if module in {"containerd", "kubernetes"} else ["."]
    )
    flags = linker_flags(module)
    for package in tools:
        name = module if package == "." else package.rpartition("/")[2]
        timed(name, partial(go, module, "build", *flags, "-o", str(into / name), package))
    if module == "kubernetes":
        timed(
            "e2e.test", partial(go, module, "test", "-c", "-vet=off", *flags, "-o", str(into / "e2e.test"), "./suite")
        )


def linker_flags(module: str) -> list[str]:
    """Flags that give a program its version: Kubernetes decides by it which features are on."""
    values = []
    if module == "kubernetes":
        number = version(module, "k8s.io/kubernetes")
        for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version"):
            minor = number.split(".")[1]
            values += [f"{package}.gitVersion={number}", f"{package}.gitMajor=1", f"{package}.gitMinor={minor}"]
    if module == "containerd":
        package = "github.com/containerd/containerd/v2"
        values = [f"{package}/version.Version={version(module, package)}"]
    return ["-trimpath", "-buildvcs=false", "-ldflags", " ".join(["-s -w", *(f"-X {value}" for value in values)])]


def timed(name: str, action: Callable[[], object]) -> None:
    """Do something, and print how long it took."""
    started = time.monotonic()
    print(f"building {name}", flush=True)
    action()
    print(f"built {name} in {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    for path in sorted(programs().values()):
        print(path)
