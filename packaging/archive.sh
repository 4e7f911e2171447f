#!/bin/sh
# Build an archive that installs on a node without a package index. Usage: archive.sh PYTHON WHEELS DIRECTORY [VERSION MACHINE]
# The arguments are those of tree.sh; the archive is written to DIRECTORY. If dpkg-deb is there, so is a Debian package.
set -eu
python=$1
wheels=$2
target=$3
here=$(cd "$(dirname "$0")" && pwd)
repository=$(cd "$here/.." && pwd)
python_version=${4:-$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')}
machine=${5:-$(uname -m)}
: "${SOURCE_DATE_EPOCH:=$(git -C "$repository" log -1 --format=%ct 2>/dev/null || date +%s)}"
export SOURCE_DATE_EPOCH
wheel=$(ls "$wheels"/pyproxy_node-*.whl)
version=$(basename "$wheel" | cut -d- -f2)
name=pyproxy-$version
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$here/tree.sh" "$python" "$wheels" "$work/$name/pyproxy" "$python_version" "$machine"
cp -R "$repository/systemd" "$repository/LICENSE" "$here/install" "$work/$name"
# Manual pages and completion scripts come from the commands. Any Python that can run pyproxy writes the same.
share=$work/$name/share
mkdir -p "$share/completion"
PYTHONPATH=$wheel "$python" -P "$here/man_pages.py" "$share/man/man1"
gzip -n9 "$share"/man/man1/*
for shell in bash zsh fish; do
    PYTHONPATH=$wheel "$python" -P -m pyproxy completion "$shell" >"$share/completion/$shell"
done
chmod -R u=rwX,go=rX "$work/$name"
mkdir -p "$target"
tar -C "$work" --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner -cf - "$name" |
    gzip -n9 >"$work/archive"
mv "$work/archive" "$target/$name-python$python_version-$machine.tar.gz"

if command -v dpkg-deb >/dev/null; then
    "$here/deb.sh" "$work/$name" "$target" "$version" "$python_version" "$machine"
fi
