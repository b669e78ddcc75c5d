#!/usr/bin/env bash
# Makes a container image of Wirelane's programs: an OCI layout in a tar, with no daemon and no registry.
#
#   tools/image.sh [--profile PROFILE] [--name NAME:TAG] [OUT.tar]
#
# One layer, from nothing but the programs, the shared libraries that they name, and the folders that they want. The same
# programs give the same bytes. Load it with `ctr --namespace k8s.io images import OUT.tar`, or push it with skopeo or crane.
set -euo pipefail

PROFILE=release NAME='' OUT=''
programs=(wirelane-dataplane wirelane-control wirelane)

say() { printf 'image: %s\n' "$*"; }
die() {
    printf 'image: %s\n' "$*" >&2
    exit 1
}

main() {
    while [ $# -gt 0 ]; do
        case "$1" in
            --profile) PROFILE=${2:?} && shift 2 ;;
            --name) NAME=${2:?} && shift 2 ;;
            -*) die "unknown argument '$1' (there are --profile and --name)" ;;
            *) OUT=$(realpath "$1") && shift ;;
        esac
    done
    cd "$(dirname "${BASH_SOURCE[0]}")/.."
    tools/setup.sh
    PATH="${CARGO_HOME:-${HOME:-/root}/.cargo}/bin:$PATH"
    local version target
    version=$(sed -n '/^\[workspace.package\]/,/^version/s/^version = "\(.*\)"/\1/p' Cargo.toml)
    NAME=${NAME:-localhost/wirelane:$version}
    target=${CARGO_TARGET_DIR:-target}
    OUT=${OUT:-$target/wirelane.tar}
    cargo build --quiet --profile "$PROFILE" -p wirelane-dataplane -p wirelane-control -p wirelane
    # The plugin runs on the node itself, which may have another C library: it brings its own.
    plugin=$(tools/cni/build.sh)
    [ "$PROFILE" != dev ] || PROFILE=debug

    work=$(mktemp --directory)
    trap 'rm -rf "$work"' EXIT
    root_folder "$work/root" "$target/$PROFILE"
    layout "$work/root" "$work/image" "$version"
    # In a fixed order and with no time in it, so that nothing but the content counts.
    pack "$work/image" "$OUT"
    say "$NAME is in $OUT ($(du -h "$OUT" | cut -f 1))"
}

# What the container sees.
root_folder() {
    local root=$1 built=$2 program library
    mkdir -p "$root"/{etc,proc,sys,dev,run/wirelane,run/netns,var/lib/wirelane,tmp,usr/local/bin,host}
    ln -s /run "$root/var/run"
    for program in "${programs[@]}"; do
        install -m 755 "$built/$program" "$root/usr/local/bin/"
    done
    install -m 755 "$plugin" "$root/usr/local/bin/"
    # The loader among them, each where it is on this system.
    for program in "${programs[@]}"; do
        ldd "$built/$program"
    done | grep --only-matching '/[^ ]*\.so[^ ]*' | sort --unique | while read -r library; do
        install -D -m 755 "$(realpath "$library")" "$root$library"
    done
    printf 'root:x:0:0:root:/:/none\n' >"$root/etc/passwd"
    printf 'hosts: files dns\n' >"$root/etc/nsswitch.conf"
}

# An OCI image layout (https://github.com/opencontainers/image-spec, image-layout.md) of one layer.
layout() {
    local root=$1 image=$2 version=$3 blobs=$2/blobs/sha256 architecture layer diff config manifest
    mkdir -p "$blobs"
    case "$(uname -m)" in
        x86_64) architecture=amd64 ;;
        aarch64) architecture=arm64 ;;
        *) die "no name for the architecture $(uname -m)" ;;
    esac
    pack "$root" "$work/layer"
    diff=$(digest "$work/layer")
    gzip --no-name --best "$work/layer"
    layer=$(add "$work/layer.gz")
    cat >"$work/config" <<JSON
{"architecture":"$architecture","os":"linux","config":{"Env":["PATH=/usr/local/bin"],"Labels":{"org.opencontainers.image.title":"wirelane","org.opencontainers.image.version":"$version"}},"rootfs":{"type":"layers","diff_ids":["sha256:$diff"]}}
JSON
    config=$(add "$work/config")
    cat >"$work/manifest" <<JSON
{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":$(descriptor config.v1+json "$config"),"layers":[$(descriptor layer.v1.tar+gzip "$layer")]}
JSON
    manifest=$(add "$work/manifest")
    # containerd takes the whole name from its own annotation, others the tag from the standard's.
    cat >"$image/index.json" <<JSON
{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:$manifest","size":$(size "$manifest"),"platform":{"architecture":"$architecture","os":"linux"},"annotations":{"io.containerd.image.name":"$NAME","org.opencontainers.image.ref.name":"${NAME##*:}"}}]}
JSON
    printf '{"imageLayoutVersion":"1.0.0"}' >"$image/oci-layout"
}

pack() { tar --create --file "$2" --directory "$1" --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 .; }

digest() { sha256sum "$1" | cut -d ' ' -f 1; }

size() { stat --format %s "$blobs/$1"; }

# Moves a file among the blobs, and says its digest.
add() {
    local name
    name=$(digest "$1")
    mv "$1" "$blobs/$name"
    printf '%s' "$name"
}

descriptor() {
    printf '{"mediaType":"application/vnd.oci.image.%s","digest":"sha256:%s","size":%s}' "$1" "$2" "$(size "$2")"
}

main "$@"
