#!/bin/sh
# Build a directory with pyproxy and all its dependencies. Usage: tree.sh PYTHON DIRECTORY
# Install the directory as /opt/pyproxy on a machine with the same minor version of Python. pip, venv and a package index are
# not needed there. PYTHON must have pip and the build tools of requirements-build.lock.
set -eu
python=$1
tree=$2
here=$(cd "$(dirname "$0")" && pwd)
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
packages=$tree/lib/python$version/site-packages
source=$(mktemp -d)
trap 'rm -rf "$source"' EXIT

# Build from a copy: setuptools leaves build results next to the sources and would reuse them in the next build.
cp -R "$here/../pyproxy" "$here/../pyproject.toml" "$here/../README.md" "$here/../LICENSE" "$source"

rm -rf "$tree"
mkdir -p "$tree/bin" "$packages"
set -- install --quiet --disable-pip-version-check --no-build-isolation --no-compile --root-user-action=ignore --target "$packages"
"$python" -m pip "$@" --require-hashes --requirement "$here/../requirements.lock"
"$python" -m pip "$@" --no-deps "$source" 2>&1 | grep -v '/bin already exists' || true

# A minimal virtual environment: this file and the link are sufficient.
printf 'home = /usr/bin\ninclude-system-site-packages = false\n' >"$tree/pyvenv.cfg"
ln -s "/usr/bin/python$version" "$tree/bin/python3"
install -m 755 "$here/pyproxy" "$tree/bin/pyproxy"
ln -s pyproxy "$tree/bin/kube-proxy"

grep -v -e '^#' -e '^$' "$here/unused" | while read -r pattern; do
    # shellcheck disable=SC2086
    case $pattern in
        '*'*) find "$packages" -name "$pattern" -delete ;;
        *) rm -rf "${packages:?}"/$pattern ;; # the name may have a wildcard
    esac
done
# Compile now, because the installed tree is read-only for the agent. unchecked-hash, because copying changes timestamps.
"$python" -m compileall -q --invalidation-mode unchecked-hash "$packages"
