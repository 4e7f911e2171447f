#!/bin/sh
# Build the container image with buildah. Usage: image.sh TAG [OCI-ARCHIVE]
# ARCHITECTURE is the image's (amd64 or arm64), by default this machine's; another one needs qemu-user and binfmt_misc.
# More environment: BASE is the base image, best with a digest (debian@sha256:...). BUILDAH is the program with its global flags,
# and IMAGE_FLAGS has further flags of `buildah build`. TREE is the source tree, by default this one. GIT_COMMIT and SOURCE_DATE_EPOCH are as for wheel.sh.
set -eu
tag=$1
archive=${2:-}
repository=${TREE:-$(cd "$(dirname "$0")/.." && pwd)}
: "${GIT_COMMIT:=$(git -C "$repository" rev-parse HEAD 2>/dev/null || true)}"
: "${SOURCE_DATE_EPOCH:=$(git -C "$repository" log -1 --format=%ct 2>/dev/null || date +%s)}"
version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' "$repository/pyproxy/__init__.py")

# shellcheck disable=SC2086  # lists of words
${BUILDAH:-buildah} build --quiet ${ARCHITECTURE:+"--arch=$ARCHITECTURE"} --format=oci --timestamp="$SOURCE_DATE_EPOCH" ${BASE:+"--build-arg=BASE=$BASE"} \
    --build-arg=VERSION="$version" --build-arg=GIT_COMMIT="$GIT_COMMIT" --build-arg=SOURCE_DATE_EPOCH="$SOURCE_DATE_EPOCH" \
    --build-arg=CREATED="$(date --utc --date="@$SOURCE_DATE_EPOCH" +%Y-%m-%dT%H:%M:%SZ)" ${IMAGE_FLAGS:-} \
    --tag="$tag" --file="$repository/Containerfile" "$repository"
if [ -n "$archive" ]; then
    rm -f "$archive"
    # shellcheck disable=SC2086  # a list of words
    ${BUILDAH:-buildah} push --quiet "$tag" "oci-archive:$archive:$tag"
fi
