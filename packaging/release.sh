#!/bin/sh
# Build all files of a release in dist/release. Usage: release.sh PYTHON
# The archives and packages for other architectures and versions of Python are made of wheels and need no emulation. The image
# is for this machine's architecture; on another machine, `make image` builds its own. Environment: see image.sh; with
# IMAGE=no there is no image.
set -eu
python=$1
here=$(cd "$(dirname "$0")" && pwd)
repository=$(cd "$here/.." && pwd)
release=$repository/dist/release
: "${GIT_COMMIT:=$(git -C "$repository" rev-parse HEAD 2>/dev/null || true)}"
: "${SOURCE_DATE_EPOCH:=$(git -C "$repository" log -1 --format=%ct 2>/dev/null || date +%s)}"
export GIT_COMMIT SOURCE_DATE_EPOCH
version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' "$repository/pyproxy/__init__.py")

rm -rf "$release"
mkdir -p "$release"
"$here/wheel.sh" "$python" "$release"
for python_version in ${PYTHON_VERSIONS:-3.11 3.12 3.13}; do
    for machine in ${MACHINES:-x86_64 aarch64}; do
        echo "building for Python $python_version on $machine"
        "$here/archive.sh" "$python" "$release" "$release" "$python_version" "$machine"
    done
done
"$python" "$here/sbom.py" "$version" >"$release/pyproxy-$version.cdx.json"
if [ "${IMAGE:-yes}" = yes ]; then
    "$here/image.sh" "localhost/pyproxy:$version" "$release/pyproxy-$version-image-$(uname -m).tar"
    gzip -n9 "$release/pyproxy-$version-image-$(uname -m).tar"
fi
make --silent --directory="$repository" checksums
ls -l "$release"
