#!/bin/sh
# Build the files of `make dist` in dist/: a wheel, and an archive and a Debian package for this machine. Usage: dist.sh PYTHON
set -eu
python=$1
here=$(cd "$(dirname "$0")" && pwd)
dist=$here/../dist
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$here/wheel.sh" "$python" "$work"
"$here/archive.sh" "$python" "$work" "$work"
# Move the files into place only when they are complete, and replace those of other versions.
mkdir -p "$dist"
rm -f "$dist"/pyproxy*
mv "$work"/* "$dist"
ls -l "$dist"
