#!/usr/bin/env bash
# Build the images, push them, and convert them for Pyxis and enroot.
#
#   containers/build.sh [train] [generate] [--push REGISTRY] [--enroot DIRECTORY] [--dry-run]
#
# --push REGISTRY      tag them as REGISTRY/NAME:VERSION as well, and push them there
# --enroot DIRECTORY   write DIRECTORY/NAME-VERSION.sqsh, which cluster.train_image and cluster.generate_image can name
# --dry-run            print the commands
#
# CONTAINER_ENGINE is docker (the default) or podman.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=containers/versions.env
source containers/versions.env

fail() {
    echo "$1" >&2
    exit 2
}

# value OPTION WHAT [VALUE]: complain unless there is one; another option is none.
value() {
    case ${3-} in
        "" | -*) fail "$1 = (missing): give $2" ;;
    esac
}

engine=${CONTAINER_ENGINE:-docker}
images=()
registry=""
squashed=""
dry_run=""
while [ $# -gt 0 ]; do
    case $1 in
        train | generate) images+=("$1") ;;
        --push) value "$1" "a registry" "${2-}" && registry=$2 && shift ;;
        --enroot) value "$1" "a directory" "${2-}" && squashed=$2 && shift ;;
        --dry-run) dry_run=yes ;;
        -h | --help) sed -n '2,/^set/s/^# \{0,1\}//p' "$0" && exit 0 ;;
        *) fail "argument = $1: no such option; --help explains" ;;
    esac
    shift
done
[ ${#images[@]} -gt 0 ] || images=(train generate)

run() {
    printf '%q ' "$@" && echo
    [ -n "$dry_run" ] || "$@"
}

if [ -z "$dry_run" ]; then
    case $engine in
        docker | podman) ;;
        *) fail "CONTAINER_ENGINE = $engine: set docker or podman" ;;
    esac
    command -v "$engine" > /dev/null || fail "$engine = (not installed): install it, or set CONTAINER_ENGINE=podman"
    [ -z "$squashed" ] || command -v enroot > /dev/null \
        || fail "enroot = (not installed): leave --enroot out, or install it"
    [ -z "$squashed" ] || [ -d "$squashed" ] || fail "--enroot = $squashed: no such directory; make it first"
fi

version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' sami_nemo/__init__.py)
for image in "${images[@]}"; do
    case $image in
        train) base=$TRAIN_BASE name=$TRAIN_IMAGE ;;
        generate) base=$GENERATE_BASE name=$GENERATE_IMAGE ;;
    esac
    run "$engine" build --build-arg "BASE=$base" --file "containers/$image.Dockerfile" --tag "$name:$version" .
    if [ -n "$registry" ]; then
        run "$engine" tag "$name:$version" "$registry/$name:$version"
        run "$engine" push "$registry/$name:$version"
    fi
    if [ -n "$squashed" ]; then
        # enroot writes no file over another.
        run rm -f "$squashed/$name-$version.sqsh"
        scheme=$([ "$engine" = podman ] && echo podman || echo dockerd)
        run enroot import --output "$squashed/$name-$version.sqsh" "$scheme://$name:$version"
    fi
done
