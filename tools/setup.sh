#!/usr/bin/env bash
# Installs what Wirelane's build, demo, tests and benchmarks need on Debian 12 or later, and only what is missing.
# Does nothing, quickly and silently, when all is there. Every other script in this folder calls it first.
#
#   tools/setup.sh          install what is missing
#   tools/setup.sh --bench  and what Wirelane is measured beside
#   tools/setup.sh --list   print the packages and what each is for
#
# On another system: install what --list names, then set WIRELANE_SKIP_SETUP=1.
set -euo pipefail

# Debian's package, then what it is for.
packages() {
    cat <<'LIST'
gcc              links every binary; compiles libbpf and libxdp for xsk-rs
libc6-dev        the C library's headers, and the kernel's with them
binutils         ld, ar and objcopy, which embed libxdp's programs
make             builds libbpf
m4               generates a source file of libxdp
pkg-config       asked for by libbpf's build
libelf-dev       libbpf reads BPF objects with it
zlib1g-dev       libelf and libbpf need it
clang            compiles the XDP program (target bpf)
libclang-dev     bindgen reads libbpf's and libxdp's headers with it
ca-certificates  cargo fetches crates over TLS
curl             HTTP client of the demo and of the tests of health checks; fetches rustup where Debian has no package of it
iproute2         ip: network namespaces, links and routes of demo and tests
ethtool          shows and sets the offloads of links in demo and tests
iperf3           bulk TCP traffic of the demo, datagrams of 64 kB in the tests
iputils-ping     ping, in the tests of Services
traceroute       traceroute, likewise
procps           ps, pgrep and sysctl
containerd       starts the pods of the tests of the CNI plugin
containernetworking-plugins  the plugin "loopback", which containerd asks for beside ours
busybox-static   what these pods are made of
nftables         nft: the kubelet's firewall, in the tests of host ports; the kernel's own translation, in the report
xz-utils         xz unpacks the published verdicts that a test compares with
LIST
}

# Only the report needs these; where one is missing, it says so and goes on.
bench_packages() {
    cat <<'LIST'
libdpdk-dev      rte_hash, beside which flow lookups are measured
dpdk-dev         testpmd, beside which forwarding over veth is measured
valgrind         callgrind counts the path's instructions
LIST
}

say() { printf 'setup: %s\n' "$*"; }
die() {
    printf 'setup: %s\n' "$*" >&2
    exit 1
}

main() {
    local bench=''
    case "${1:-}" in
        --list)
            packages
            printf '\n# for tools/bench.sh only\n'
            bench_packages
            return
            ;;
        --bench) bench=yes ;;
        '') ;;
        *) die "unknown argument '$1' (there are --bench and --list)" ;;
    esac
    [ -z "${WIRELANE_SKIP_SETUP:-}" ] || return 0

    cd "$(dirname "${BASH_SOURCE[0]}")/.."
    PATH="${CARGO_HOME:-${HOME:-/root}/.cargo}/bin:$PATH"
    check_system
    install_packages < <(packages)
    # Figures without peers are better than none.
    [ -z "$bench" ] || (install_packages < <(bench_packages)) || say 'going on without: what needs it will be skipped'
    install_rust
    check_rust
}

check_system() {
    local ID='' VERSION_ID='' PRETTY_NAME=''
    # shellcheck source=/dev/null
    [ ! -r /etc/os-release ] || . /etc/os-release
    # Debian's testing and unstable have no VERSION_ID: they are later than every release.
    if [ "$ID" != debian ] || [ "${VERSION_ID:-99}" -lt 12 ]; then
        die "this is ${PRETTY_NAME:-an unknown system}; only Debian 12 or later is known to work." \
            "Elsewhere, install what 'tools/setup.sh --list' names and set WIRELANE_SKIP_SETUP=1."
    fi
}

# Installs those of a list that are missing.
install_packages() {
    local package why installed reasons='' missing=()
    installed=$(dpkg-query --show --showformat '${db:Status-Status} ${Package}\n')
    while read -r package why; do
        grep -qx "installed $package" <<<"$installed" && continue
        missing+=("$package")
        reasons+=$(printf '\n  %-16s %s' "$package" "$why")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    say "installing from Debian:$reasons"
    apt_install "${missing[@]}"
}

install_rust() {
    ! command -v cargo >/dev/null || return 0
    if apt-cache policy rustup | grep -q 'Candidate: [0-9]'; then
        say "no cargo found: installing Debian's rustup, and with it the stable toolchain for $(id -un)"
        apt_install rustup
        rustup default stable || die 'rustup could not install the toolchain.'
    else
        say "no cargo found: installing rustup and the stable toolchain for $(id -un) with rustup's own script"
        curl --proto '=https' --tlsv1.2 --silent --show-error --fail https://sh.rustup.rs |
            sh -s -- -y --no-modify-path --profile minimal --component clippy --component rustfmt ||
            die 'rustup could not be installed; install Rust by hand (https://rustup.rs) and run this again.'
    fi
}

check_rust() {
    local required found
    required=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    found=$(rustc --version | cut -d ' ' -f 2) || die "cargo is there, but rustc does not run."
    printf '%s\n' "$required" "${found%%-*}" | sort --check=quiet --version-sort ||
        die "rustc is $found, but Cargo.toml asks for $required or later: run 'rustup update stable'."
}

# Prints apt's output only where it fails: what is installed has been said already.
apt_install() {
    local log root=()
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null ||
            die "not root, and there is no sudo. As root, run: apt-get install --no-install-recommends $*"
        root=(sudo)
    fi
    log=$(mktemp)
    if ! {
        "${root[@]}" apt-get --quiet update &&
            "${root[@]}" env DEBIAN_FRONTEND=noninteractive \
                apt-get --quiet --yes --no-install-recommends install "$@"
    } >"$log" 2>&1; then
        cat "$log" >&2
        rm -f "$log"
        die "apt-get could not install: $*"
    fi
    rm -f "$log"
}

main "$@"
