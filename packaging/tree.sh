#!/bin/sh
# Build a directory with pyproxy and all its dependencies. Usage: tree.sh PYTHON WHEELS DIRECTORY [VERSION MACHINE]
# Install the directory as /opt/pyproxy on a machine with this minor version of Python (default: that of PYTHON) and this
# architecture (default: this machine's). pip, venv and a package index are not needed there. PYTHON must have pip and the
# build tools of requirements-build.lock; WHEELS has the output of wheel.sh.
# For another version or architecture, python-iptables is left out, because it has no wheels; pyproxy works without it.
set -eu
python=$1
wheels=$2
tree=$3
own_version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
version=${4:-$own_version}
machine=${5:-$(uname -m)}
here=$(cd "$(dirname "$0")" && pwd)
packages=$tree/lib/python$version/site-packages
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

rm -rf "$tree"
mkdir -p "$tree/bin" "$packages"
requirements=$here/../requirements.lock
set -- install --quiet --disable-pip-version-check --no-compile --root-user-action=ignore --target "$packages"
if [ "$version-$machine" = "$own_version-$(uname -m)" ]; then
    # Debug information has the path of the build.
    CFLAGS="${CFLAGS:-} -g0" "$python" -m pip "$@" --no-build-isolation --require-hashes --requirement "$requirements"
else
    sed '/^python-iptables==/,/^[a-z]/{/^python-iptables==/d;/^    /d}' "$requirements" >"$work/requirements"
    "$python" -m pip "$@" --require-hashes --requirement "$work/requirements" --only-binary=:all: \
        --python-version "$version" --platform "manylinux2014_$machine" --platform "manylinux_2_28_$machine"
fi
# By its name and not by its path, which would become part of the tree.
"$python" -m pip "$@" --no-deps --no-index --find-links "$wheels" pyproxy-node 2>&1 | grep -v '/bin already exists' || true

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
# The modules of some wheels have symbols for debuggers, 10 MB of them. strip knows only its own machine's files. Libraries that
# a wheel brings along are left alone, because the tools that rewrite them produce files that strip can damage.
if [ "$machine" = "$(uname -m)" ] && command -v strip >/dev/null; then
    find "$packages" -name '*.cpython-*.so' -exec strip --strip-unneeded {} +
fi
# Compile now, because the installed tree is read-only for the agent. unchecked-hash, because copying changes timestamps.
# A tree for another version is compiled when it is installed.
[ "$version" != "$own_version" ] ||
    "$python" -m compileall -q --invalidation-mode unchecked-hash -s "$packages" -p "/opt/pyproxy/lib/python$version/site-packages" "$packages"
