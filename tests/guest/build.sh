#!/usr/bin/env bash
# Build the guest kernel, User-Mode Linux from Debian's linux-source-6.1, and print where it is.
#
# It is kept outside the checkout, in a folder named after everything it is built from: every clone on a machine uses the
# same one, and a new version of the source package, of this script or of kernel.config makes another. Some six minutes on two
# cores; progress goes to standard error.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/pyproxy-tests
source=/usr/src/linux-source-6.1.tar.xz
progress_seconds=15

version=$(dpkg-query --show --showformat '${Version}' linux-source-6.1) || {
  echo "linux-source-6.1 is not installed: run tests/install-packages" >&2
  exit 1
}
digest=$({ echo "$version"; cat "$here/build.sh" "$here/kernel.config"; } | sha256sum | cut -c1-16)
folder=$cache/guest-$digest
mkdir -p "$cache"
exec 9>"$folder.lock"
flock 9 # two test runs that start at once build once
if [[ -x $folder/linux ]]; then
  echo "$folder/linux"
  exit
fi

tree=$(mktemp -d "$cache/guest-build-XXXXXX")
trap 'rm -rf "$tree"' EXIT
echo "building the guest kernel, linux $version (once on this machine; some six minutes on two cores)" >&2
tar -xJf "$source" -C "$tree" --strip-components 1
cd "$tree"

# User-Mode Linux 6.1 keeps a process's FPU state in a buffer of 2,696 bytes (arch/x86/um/user-offsets.c). A processor with
# AMX has 11,008 bytes of it, and PTRACE_SETREGSET wants them all: the kernel then panics with "ptrace set fp regs failed".
grep -q 'DEFINE_LONGS(HOST_FP_SIZE, 2696)' arch/x86/um/user-offsets.c
sed -i 's/DEFINE_LONGS(HOST_FP_SIZE, 2696)/DEFINE_LONGS(HOST_FP_SIZE, 16384)/' arch/x86/um/user-offsets.c

log=$tree/build.log
fail() {
  tail -n 30 "$log" >&2
  echo "the guest kernel could not be built; above are the last lines of the build" >&2
  exit 1
}
{
  make ARCH=um tinyconfig
  ./scripts/kconfig/merge_config.sh -m .config "$here/kernel.config"
  make ARCH=um olddefconfig
} >"$log" 2>&1 || fail

# kconfig drops an option whose dependencies are missing, and says nothing; it would show as a test without its match.
while read -r wanted; do
  grep -qxF "$wanted" .config || {
    echo "kernel.config: $wanted: this kernel's configuration does not take it" >&2
    exit 1
  }
done < <(grep '^CONFIG_' "$here/kernel.config")

nice make ARCH=um -j"$(nproc)" linux >>"$log" 2>&1 &
builder=$!
started=$SECONDS
while sleep "$progress_seconds" && kill -0 "$builder" 2>/dev/null; do
  echo "  $(grep -c '^  CC' "$log") files compiled after $((SECONDS - started)) s" >&2
done
wait "$builder" || fail

rm -rf "$folder.part" # of an interrupted build
mkdir "$folder.part"
mv linux .config "$folder.part"
mv "$folder.part" "$folder"
echo "built the guest kernel in $((SECONDS - started)) s" >&2
echo "$folder/linux"
