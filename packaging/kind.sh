#!/usr/bin/env bash
# Create a kind cluster and replace its kube-proxy by pyproxy, in the mode $MODE. Prints every command that it runs. Needs
# docker (or podman), kind and kubectl; `make kind` builds the latter two if they are not on PATH.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

cluster=${CLUSTER:-pyproxy}
mode=${MODE:-nftables}
engine=$(command -v docker || command -v podman) || {
  echo "neither docker nor podman is on PATH: kind needs a container engine" >&2
  exit 1
}
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
image=localhost/pyproxy:$version
context=kind-$cluster
archive=$(mktemp --suffix=.tar)
trap 'rm -f "$archive"' EXIT

run() {
  echo "+ $*"
  "$@"
}

run "$engine" build --file Containerfile --tag "$image" .
run kind create cluster --name "$cluster"
# `kind load docker-image` would call docker, also where the engine is podman.
run "$engine" save --output "$archive" "$image"
run kind load image-archive --name "$cluster" "$archive"
run kubectl --context "$context" apply --kustomize "manifests/overlays/$mode"
run kubectl --context "$context" --namespace kube-system rollout status daemonset/kube-proxy --timeout 5m
echo
echo "pyproxy runs in $mode mode. Ask it which Services do not work:"
echo "  kubectl --context $context --namespace kube-system exec daemonset/kube-proxy -- pyproxy services --problems"
echo "Back to kube-proxy:  kubectl --context $context --namespace kube-system rollout undo daemonset/kube-proxy"
echo "  then, after nftables mode, on each node: nft delete table ip pyproxy; nft delete table ip6 pyproxy"
echo "Remove the cluster:  kind delete cluster --name $cluster"
