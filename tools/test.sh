#!/usr/bin/env bash
# Runs every check that a change must pass, to the end, and then says what each one found.
#
#   tools/test.sh           all of it; as root, or with sudo
#   tools/test.sh --quick   without the documentation, the build without clang, loom and shuttle
#
# WIRELANE_SKIP_PRIVILEGED=1 leaves out the tests that need root, and says so.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

main() {
    local quick=''
    case "${1:-}" in
        --quick) quick=yes ;;
        '') ;;
        *) sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2 && exit 2 ;;
    esac

    tools/setup.sh
    PATH="${CARGO_HOME:-${HOME:-/root}/.cargo}/bin:$PATH"
    become_root_for_tests

    log=$(mktemp)
    trap 'rm -f "$log"' EXIT
    passed=0 failed=0 ignored=0 report=''
    local before
    before=$(leftovers)

    check 'format' cargo fmt --check
    check 'clippy' cargo clippy --workspace --all-targets -- -D warnings
    check 'tests' cargo test --workspace --no-fail-fast
    if [ -z "$quick" ]; then
        check 'documentation' env RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps
        # The packet path stays pure Rust: no AF_XDP, no clang.
        check 'without clang' env CLANG=/bin/false \
            cargo test -p wirelane-dataplane --no-default-features --no-fail-fast
        check 'loom' env RUSTFLAGS='--cfg wirelane_loom' \
            cargo test --profile loom -p wirelane-dataplane --no-default-features --lib loom
        check 'shuttle' env RUSTFLAGS='--cfg wirelane_shuttle' \
            cargo test --profile loom -p wirelane-dataplane --no-default-features --lib shuttle
    fi
    check 'nothing left behind' nothing_new_since "$before"

    printf '\n%s' "$report"
    [ -z "${WIRELANE_SKIP_PRIVILEGED:-}" ] ||
        echo 'skipped: the tests that need root (WIRELANE_SKIP_PRIVILEGED is set)'
    printf '%d passed, %d failed, %d skipped\n' "$passed" "$failed" "$ignored"
    [[ $report != *FAILED* ]]
}

# check NAME COMMAND...: runs it, and adds how it went to the report and to the counts.
check() {
    local name=$1 outcome=ok start=$SECONDS counts failures
    shift
    printf '\n== %s: %s\n' "$name" "$*"
    "$@" 2>&1 | tee "$log" || outcome=FAILED
    counts=$(sed -n 's/^test result: .* \([0-9]*\) passed; \([0-9]*\) failed; \([0-9]*\) ignored.*/\1 \2 \3/p' "$log" |
        awk '{ passed += $1; failed += $2; ignored += $3 } END { if (NR) print passed, failed, ignored }')
    if [ -n "$counts" ]; then
        # shellcheck disable=SC2086 # three words
        set -- $counts
        passed=$((passed + $1)) failed=$((failed + $2)) ignored=$((ignored + $3))
        counts=" ($1 passed, $2 failed, $3 ignored)"
    fi
    report+=$(printf '%-22s %-6s %4d s%s' "$name" "$outcome" $((SECONDS - start)) "$counts")$'\n'
    failures=$(sed -n 's/^test \(.*\) \.\.\. FAILED$/    \1/p' "$log")
    report+=${failures:+$failures$'\n'}
}

# Network namespaces need root; the build does not.
become_root_for_tests() {
    [ "$(id -u)" -ne 0 ] && [ -z "${WIRELANE_SKIP_PRIVILEGED:-}" ] || return 0
    command -v sudo >/dev/null || {
        echo 'test: not root, and there is no sudo; WIRELANE_SKIP_PRIVILEGED=1 leaves out what needs it' >&2
        exit 1
    }
    local host
    host=$(rustc -vV | sed -n 's/^host: //p')
    host=${host^^}
    export "CARGO_TARGET_${host//-/_}_RUNNER=sudo -E"
}

# What a run could leave on the machine, one thing a line. A lab is named after the process that made it
# (wl-PID-XXXX): those whose maker lives belong to another run, and are no leftovers.
leftovers() {
    local name
    {
        ip netns list | sed 's/ .*//; s/^/namespace /'
        find "${TMPDIR:-/tmp}" -maxdepth 1 -name 'wl-*' -printf 'folder %f\n'
        # shellcheck disable=SC2009 # pgrep shows no arguments of a process
        ps -eo args= | grep -o '^[^ ]*wirelane-.*wl-[0-9]*-....' | sed 's/^/process /'
    } | while read -r name; do
        [[ $name =~ wl-([0-9]+)-[[:alnum:]]{4} ]] || continue
        [ -d "/proc/${BASH_REMATCH[1]}" ] || printf '%s\n' "$name"
    done
    # The node's own links: none of ours, no program on any.
    ip -o link show | sed -nE 's/^[0-9]+: (wl[0-9a-f]{12}|wirelane[^:@]*).*/link \1/p; s/^[0-9]+: ([^:@]*).* (prog\/xdp|xdp[a-z]*) .*/XDP program on \1/p'
    [ ! -e /run/wirelane ] || echo 'folder /run/wirelane'
}

nothing_new_since() {
    local new
    new=$(comm -13 <(sort <<<"$1") <(leftovers | sort))
    [ -z "$new" ] || { printf 'left behind: %s\n' "$new" && return 1; }
}

main "$@"
