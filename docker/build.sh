#!/bin/sh
# Builds both images with Docker: `make images TAG=...` calls it.
#
#   TAG         of both images; default: the commit, where nothing is changed beside it
#   REPOSITORY  what their names begin with; default: pconv
#   PUSH        yes: push them afterwards
#   GPU         yes: also build beam-gpu, the beam image with CUDA
#   PLATFORM    default: linux/amd64, that of the machines in infra/
set -eu
cd "$(dirname "$0")/.."

if [ -z "${TAG-}" ]; then
    [ -z "$(git status --porcelain)" ] || { echo "TAG: expected one, for there are changes that no commit has." >&2; exit 2; }
    TAG=$(git rev-parse --short=12 HEAD)
fi
[ "$TAG" != latest ] || { echo "TAG: expected a version or a commit. Received latest." >&2; exit 2; }
command -v docker >/dev/null || { echo "make images needs Docker; infra/local/build_images.sh does without." >&2; exit 2; }

commit=$(git describe --always --exclude '*' --abbrev=12 --dirty=.changed 2>/dev/null || true)
images="ray beam"
[ "${GPU-}" != yes ] || images="$images beam-gpu"
for image in $images; do
    set -- --platform "${PLATFORM:-linux/amd64}" --build-arg "PCONV_COMMIT=$commit"
    [ "$image" != beam-gpu ] || set -- "$@" --build-arg EXTRAS=dataflow,s3,gpu
    docker build "$@" --file "docker/${image%-gpu}.Dockerfile" --tag "${REPOSITORY:-pconv}/$image:$TAG" .
    [ "${PUSH-}" != yes ] || docker push "${REPOSITORY:-pconv}/$image:$TAG"
done
