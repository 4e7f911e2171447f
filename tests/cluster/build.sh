#!/usr/bin/env bash
# Build the peers of the cluster tests (kube-apiserver, kubectl, kube-proxy, etcd) into .cache/bin.
# The versions are those of tools/go.mod. Where the binaries are up to date nothing is done.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(cd "$here/../.." && pwd)
environment=$repository/.venv
binaries=$repository/.cache/bin
stamp=$binaries/.stamp

# Print the first Go that satisfies the go line of tools/go.mod, if there is one.
find_go() {
  local candidate
  for candidate in "$(command -v go || true)" "$environment/bin/go"; do
    # Listing the main module fails on a Go that is too old, and needs no network.
    if [[ -x $candidate ]] && (cd "$here/tools" && "$candidate" list -m) >/dev/null 2>&1; then
      echo "$candidate"
      return
    fi
  done
}

install_go() {
  echo "no Go that satisfies '$(grep '^go ' "$here/tools/go.mod")' on PATH: installing one into the virtual environment" >&2
  "$environment/bin/pip" install --quiet --disable-pip-version-check --require-hashes -r "$here/go.lock"
}

# Print the linker flags that give the Kubernetes binaries their version: it decides which features they switch on.
linker_flags() {
  local version=$1 minor package
  minor=${version#v1.}
  printf -- '-s -w'
  for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
    printf -- ' -X %s.gitVersion=%s -X %s.gitMajor=1 -X %s.gitMinor=%s' \
      "$package" "$version" "$package" "$package" "${minor%%.*}"
  done
}

mkdir -p "$binaries"
exec 9>"$binaries/.lock"
flock 9 # two test runs that start at once build once

wanted=$(cat "$here/build.sh" "$here/tools/go.mod" "$here/tools/go.sum" | sha256sum)
if [[ -f $stamp && $(<"$stamp") == "$wanted" ]]; then
  echo "$binaries is up to date"
  exit
fi

export GOTOOLCHAIN=local CGO_ENABLED=0
go=$(find_go)
if [[ -z $go ]]; then
  install_go
  go=$(find_go)
fi
cd "$here/tools"
version=$("$go" list -m -f '{{.Version}}' k8s.io/kubernetes)
flags=$(linker_flags "$version")
rm -f "$stamp"
while read -r package; do
  case $package in
    go.etcd.io/*) name=etcd ;; # its package path ends in a version
    *) name=${package##*/} ;;
  esac
  started=$SECONDS
  echo "building $name"
  nice "$go" build -trimpath -buildvcs=false -ldflags "$flags" -o "$binaries/$name" "$package"
  echo "built $name in $((SECONDS - started)) s"
done < <("$go" list -f '{{.ImportPath}}' tool)
echo "$wanted" >"$stamp"
