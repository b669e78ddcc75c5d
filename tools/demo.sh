#!/usr/bin/env bash
# Builds Wirelane and shows it at work: two nodes out of network namespaces on this machine, real traffic through
# them, and a table of what was tried, expected and seen. Exits with 0 only if all of it held, and leaves nothing behind.
#
#   tools/demo.sh                 needs root
#   tools/demo.sh --keep          leave it running, and say what to try next
#   tools/demo.sh --remove NAME   end one that was kept
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ "$(id -u)" != 0 ]; then
    echo "demo: network namespaces and AF_XDP need root; try: sudo ${BASH_SOURCE[0]} $*" >&2
    exit 1
fi
tools/setup.sh
PATH="${CARGO_HOME:-${HOME:-/root}/.cargo}/bin:$PATH"
# The dev profile: quick to build, with an optimised packet path.
cargo build -p wirelane-dataplane -p wirelane-control -p wirelane
exec "${CARGO_TARGET_DIR:-target}/debug/wirelane" demo "$@"
