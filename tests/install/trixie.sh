#!/usr/bin/env bash
# Make a Debian 13 out of its packages, in .cache/trixie/root: nft, iptables and Python newer than this machine's, for
# test_newer_programs.py. Where it is up to date nothing is done.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
target=$(cd "$here/../.." && pwd)/.cache/trixie
stamp=$target/.stamp

mkdir -p "$target"
exec 9>"$target/.lock"
flock 9 # two test runs that start at once make it once

wanted=$(sha256sum <"${BASH_SOURCE[0]}")
if [[ -f $stamp && $(<"$stamp") == "$wanted" ]]; then
  exit
fi
rm -rf "$stamp" "$target/root"
options=(--variant=minbase --quiet --dpkgopt=force-unsafe-io "--include=iptables,nftables,python3")
for path in doc locale man; do
  options+=("--dpkgopt=path-exclude=/usr/share/$path/*")
done
nice mmdebstrap "${options[@]}" trixie "$target/root"
echo "$wanted" >"$stamp"
