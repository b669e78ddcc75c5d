#!/usr/bin/env bash
# Builds the CNI plugin for installing: a static program, which runs on any node whatever its C library.
# Prints where it is. Arguments go to cargo.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
target=$(rustc -vV | sed -n 's/^host: //p')
# Of this build only, and with a target named: build scripts and procedural macros cannot be static.
RUSTFLAGS="${RUSTFLAGS:-} -C target-feature=+crt-static" \
    cargo build --quiet --release --package wirelane-cni --target "$target" "$@"
printf '%s\n' "${CARGO_TARGET_DIR:-target}/$target/release/wirelane-cni"
