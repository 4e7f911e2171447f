#!/usr/bin/env bash
# Unpack promtool from Debian's package of Prometheus into .cache/promtool, without installing the package: it would start
# a server.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
target=$PWD/.cache/promtool
[[ -x $target/usr/bin/promtool ]] && exit
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work" # apt downloads as a user of its own
(cd "$work" && apt-get -qq download prometheus)
rm -rf "$target"
dpkg-deb --extract "$work"/prometheus_*.deb "$work/tree"
install -D "$work/tree/usr/bin/promtool" "$target/usr/bin/promtool"
