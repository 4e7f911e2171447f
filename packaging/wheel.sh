#!/bin/sh
# Build the wheel and the source distribution. Usage: wheel.sh PYTHON DIRECTORY
# PYTHON must have pip and the build tools of requirements-build.lock. GIT_COMMIT and SOURCE_DATE_EPOCH, which become part of
# both, are those of the checkout if they are not set. Two builds of the same commit give the same files.
set -eu
python=$(realpath --no-symlinks "$1")
target=$2
repository=$(cd "$(dirname "$0")/.." && pwd)
source=$(mktemp -d)
trap 'rm -rf "$source" "$source.log"' EXIT
: "${GIT_COMMIT:=$(git -C "$repository" rev-parse HEAD 2>/dev/null || true)}"
: "${SOURCE_DATE_EPOCH:=$(git -C "$repository" log -1 --format=%ct 2>/dev/null || date +%s)}"
export SOURCE_DATE_EPOCH

# Build from a copy: setuptools leaves build results next to the sources and would reuse them in the next build.
mkdir "$source/packaging"
cp -R "$repository/pyproxy" "$repository/pyproject.toml" "$repository/LICENSE" "$source"
cp "$repository/packaging/description.md" "$source/packaging"
find "$source" -name __pycache__ -prune -exec rm -rf {} +
# The modes of the files would depend on the umask of the checkout.
chmod -R u=rwX,go=rX "$source"
"$python" - "$source/pyproxy/build.json" "$GIT_COMMIT" <<'END'
import json, os, sys, time
date = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(int(os.environ["SOURCE_DATE_EPOCH"])))
with open(sys.argv[1], "w") as file:
    json.dump({"gitCommit": sys.argv[2], "buildDate": date}, file)
END

mkdir -p "$target"
target=$(cd "$target" && pwd)
(
    cd "$source"
    "$python" -c 'import sys
from setuptools import build_meta
target = sys.argv[1]  # setuptools replaces the arguments
build_meta.build_sdist(target)
build_meta.build_wheel(target)' "$target" >"$source.log" 2>&1 || { cat "$source.log" >&2; exit 1; }
)
# setuptools writes the time of the build into the archive.
for archive in "$target"/pyproxy_node-*.tar.gz; do
    mkdir "$source/sdist"
    tar -xzf "$archive" -C "$source/sdist"
    tar -C "$source/sdist" --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX -cf - "$(basename "$archive" .tar.gz)" |
        gzip -n9 >"$archive.new"
    mv "$archive.new" "$archive"
    rm -rf "$source/sdist"
done
