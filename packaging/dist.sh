#!/bin/sh
# Build the release files in dist/: a wheel, and an archive that installs on a node without a package index.
# Usage: dist.sh PYTHON, with the same PYTHON as for tree.sh.
set -eu
python=$1
here=$(cd "$(dirname "$0")" && pwd)
repository=$(cd "$here/.." && pwd)
version=$("$python" -c 'import importlib.metadata as m; print(m.version("pyproxy"))')
machine=$("$python" -c 'import platform, sys; print("python%d.%d-%s" % (*sys.version_info[:2], platform.machine()))')
name=pyproxy-$version
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$repository/dist" "$work/source" "$work/$name"

# Build from a copy, for the same reason as in tree.sh.
cp -R "$repository/pyproxy" "$repository/pyproject.toml" "$repository/README.md" "$repository/LICENSE" "$work/source"
"$python" -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation \
    --wheel-dir "$work/wheel" "$work/source"

"$here/tree.sh" "$python" "$work/$name/pyproxy"
cp -R "$repository/systemd" "$repository/LICENSE" "$here/install" "$work/$name"
tar -C "$work" --sort=name --owner=0 --group=0 --numeric-owner -czf "$work/$name.tar.gz" "$name"

# Move the files into place only when they are complete, and replace those of other versions.
rm -f "$repository"/dist/pyproxy-*
mv "$work"/wheel/*.whl "$repository/dist"
mv "$work/$name.tar.gz" "$repository/dist/$name-$machine.tar.gz"
ls -l "$repository/dist"
