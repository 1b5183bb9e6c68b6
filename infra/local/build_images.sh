#!/usr/bin/env bash
# Builds both images without Docker, from Debian's packages alone, and runs their smoke command as their own user.
#
#     sudo infra/local/build_images.sh [ray] [beam]          # both unless named
#
# Needs root, debootstrap and buildah (Debian has both), and PyPI. The images stay in buildah's storage as
# localhost/pconv/ray:TAG and localhost/pconv/beam:TAG; `buildah rmi --all` removes them.
#
#   TAG             default: local
#   RAY_EXTRAS      extras of the project in the Ray image; default: beam,ray,s3,gpu,cluster
#   BEAM_SDK_IMAGE  where Beam's boot program comes from; without it, and so without Docker Hub, it is
#   BOOT            a file; without that, too, it is built from its Go module. Without Go the beam image gets an empty file
#                   in its place: everything but the start of a worker can be tried
#   BUILD_OPTIONS   more options of buildah
#
# While an image is built, pip asks the index that pip here is configured for, with the same certificates and proxy.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

tag=${TAG:-local}
read -r -a options <<<"--isolation chroot --network host ${BUILD_OPTIONS-}"
[[ $# -gt 0 ]] || set -- ray beam
for image in "$@"; do
    [[ $image == ray || $image == beam ]] || { echo "error: expected ray or beam. Received '$image'." >&2; exit 2; }
done

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# pconv/base: Debian 12 with its Python 3.11; buildah keeps it for the next time.
base=localhost/pconv/base:bookworm
if ! buildah inspect --type image "$base" >/dev/null 2>&1; then
    debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv bookworm "$scratch/root" >"$scratch/log" ||
        { tail -n 20 "$scratch/log" >&2; exit 1; }
    container=$(buildah from scratch)
    buildah add -q "$container" "$scratch/root" / >/dev/null
    buildah commit -q "$container" "$base" >/dev/null
    buildah rm "$container" >/dev/null
    rm -rf "$scratch/root"
fi

# Nothing of it stays in the image, as it would with --env.
settings=$(python3 -m pip config list 2>/dev/null |
    sed -nE "s/^(global|:env:)\.(cert|index-url|extra-index-url|trusted-host|proxy)='(.*)'$/\2 = \3/p" | sort -u -t= -k1,1)
if [[ -n $settings ]]; then
    printf '[global]\n%s\n' "$settings" >"$scratch/pip.conf"
    options+=("--volume=$scratch/pip.conf:/etc/pip.conf:ro")
    certificates=$(sed -n 's/^cert = //p' <<<"$settings")
    [[ -z $certificates ]] || options+=("--volume=$certificates:$certificates:ro")
fi

sdk=${BEAM_SDK_IMAGE-}
if [[ -z $sdk ]]; then
    sdk=localhost/pconv/no-sdk:local
    container=$(buildah from scratch)
    : >"$scratch/boot"
    if [[ -n ${BOOT-} ]]; then
        install -m 755 "$BOOT" "$scratch/boot"
    elif command -v go >/dev/null; then
        version=$(sed -n 's/^apache-beam==//p' constraints.txt)
        GOBIN=$scratch GOFLAGS=-buildvcs=false go install "github.com/apache/beam/sdks/v2/python/container@v$version"
        mv "$scratch/container" "$scratch/boot"
    fi
    buildah add -q "$container" "$scratch/boot" /opt/apache/beam/boot >/dev/null
    buildah commit -q "$container" "$sdk" >/dev/null
    buildah rm "$container" >/dev/null
fi

commit=$(git describe --always --exclude '*' --abbrev=12 --dirty=.changed 2>/dev/null || true)
for image in "$@"; do
    extras=()
    [[ $image == beam ]] || extras=(--build-arg "EXTRAS=${RAY_EXTRAS-beam,ray,s3,gpu,cluster}")
    name=localhost/pconv/$image:$tag
    started=$SECONDS
    buildah bud "${options[@]}" --layers --build-arg "BASE_IMAGE=$base" --build-arg "BEAM_SDK_IMAGE=$sdk" \
        --build-arg "PCONV_COMMIT=$commit" ${extras[@]+"${extras[@]}"} -f "docker/$image.Dockerfile" -t "$name" .
    container=$(buildah from "$name")
    size=$(du -sm "$(buildah mount "$container")" | cut -f1)
    # As the image's programs run, and as `ray up` calls them.
    run=(buildah run --isolation chroot --user 1000 "$container" --)
    "${run[@]}" python /opt/pconv/smoke.py
    programs=python
    [[ $image == beam ]] || programs="ray python"
    "${run[@]}" bash --login -c "command -v $programs"
    if [[ $image == beam && -s $scratch/boot ]]; then
        # Beam's boot program as Dataflow starts it: as root, with a folder of root's. It asks for an id, and ends.
        buildah run --isolation chroot "$container" -- sh -c 'mkdir -p /var/opt/google && chmod 755 /var/opt/google &&
            ! /opt/pconv/beam-entrypoint.sh --semi_persist_dir=/var/opt/google && stat -c %u /var/opt/google | grep -qx 1000'
    fi
    buildah umount "$container" >/dev/null
    buildah rm "$container" >/dev/null
    echo "$name: $size MB unpacked, built in $((SECONDS - started)) s"
done
