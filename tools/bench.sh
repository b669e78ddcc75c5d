#!/usr/bin/env bash
# Builds the benchmarks and prints their one report; bench/README.md says what each name measures.
#
#   tools/bench.sh [--quick] [--only PREFIX] [--json FILE] [--write]
#   tools/bench.sh --instructions [path/established/vxlan] [--v6] [--keep FILE]
#
# --write puts the table and the plots into bench/. --instructions counts instead of timing, with callgrind.
set -euo pipefail

# No cd: FILE is meant from where the caller stands.
root=$(dirname "${BASH_SOURCE[0]}")/..
"$root/tools/setup.sh" --bench
PATH="${CARGO_HOME:-${HOME:-/root}/.cargo}/bin:$PATH"
program=report
[ "${1:-}" != --instructions ] || { program=instructions && shift; }
# The control process lies beside the report, which starts it.
cargo build --release --manifest-path "$root/Cargo.toml" -p wirelane-control
exec cargo run --release --manifest-path "$root/Cargo.toml" -p wirelane-bench --bin "$program" -- "$@"
