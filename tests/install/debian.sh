#!/usr/bin/env bash
# Make two systems out of Debian packages, in .cache/debian: base.tar, as small as the slim container image of Debian, and
# machine/, a Debian 12 with systemd and what docs/install.md asks for. Where they are up to date nothing is done.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
target=$(cd "$here/../.." && pwd)/.cache/debian
stamp=$target/.stamp
packages="curl dbus firewalld iproute2 iptables kmod nftables python3 systemd-sysv"
# What Debian's slim images leave out too.
slim="path-exclude=/usr/share/doc/* path-exclude=/usr/share/info/* path-exclude=/usr/share/locale/* path-exclude=/usr/share/man/*"

mkdir -p "$target"
exec 9>"$target/.lock"
flock 9 # two test runs that start at once make them once

wanted=$(sha256sum <"${BASH_SOURCE[0]}")
if [[ -f $stamp && $(<"$stamp") == "$wanted" ]]; then
  exit
fi
rm -rf "$stamp" "$target/machine" "$target/base.tar"
# Without these, a package comes along that merges /usr, with all of Perl.
options=(--variant=minbase --quiet --include=usr-is-merged --hook-dir=/usr/share/mmdebstrap/hooks/merged-usr)
for option in $slim; do
  options+=("--dpkgopt=$option")
done
# The hooks' $1 is the new system. Packages are installed from inside it: an apt-get that only has its settings
# would run dpkg on this machine.
# shellcheck disable=SC2016
nice mmdebstrap "${options[@]}" \
  --dpkgopt=force-unsafe-io \
  --customize-hook="tar --directory=\"\$1\" --exclude=./var/lib/apt/lists/* --exclude=./var/cache/apt/* --exclude=./dev/* --one-file-system -cf '$target/base.tar' ." \
  --customize-hook="chroot \"\$1\" env DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install $packages >/dev/null" \
  --customize-hook='chroot "$1" systemctl --quiet disable firewalld' \
  --customize-hook='echo uninitialized >"$1/etc/machine-id"' \
  bookworm "$target/machine"
echo "$wanted" >"$stamp"
