#!/usr/bin/env bash
# Builds the CPU kernels for another architecture and runs their tests under qemu's user emulation, once for every
# instruction set that the kernels know there. Speed under emulation says nothing; results do, and on AArch64 the
# instructions in the kernels' inner loops.
#
#     scripts/cross_test.sh [aarch64|riscv64]... [-- cargo's arguments, such as -p rustai or a test's name]
#
# Needs Debian or a system like it; installs the cross compiler and qemu as packages if they are missing. The standard
# library comes through rustup, and where that cannot give one, from the source in Debian's package `rust-src`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target}"
# One optimised build serves all levels. No link-time optimisation: it takes long and changes no kernel.
export CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 CARGO_PROFILE_RELEASE_DEBUG=0 CARGO_INCREMENTAL=0
# Leaves out what only benchmarks need (kernels-cpu/Cargo.toml).
export RUSTFLAGS="${RUSTFLAGS:+$RUSTFLAGS }--cfg rustai_without_benches"
cache="$CARGO_TARGET_DIR/cross"

architectures=()
while (($#)) && [[ $1 != -- ]]; do
    architectures+=("$1")
    shift
done
if (($#)); then shift; fi
arguments=("$@")
if ((${#architectures[@]} == 0)); then architectures=(aarch64 riscv64); fi
if ((${#arguments[@]} == 0)); then arguments=(-p rustai-kernels-cpu); fi

missing() { ! command -v "$1" >/dev/null 2>&1; }

packages() {
    local debian=$1 arch=$2 wanted=()
    if missing "$arch-linux-gnu-gcc"; then wanted+=("gcc-$arch-linux-gnu" "libc6-dev-$debian-cross"); fi
    if missing "qemu-$arch"; then wanted+=(qemu-user); fi
    if ((${#wanted[@]} == 0)); then return; fi
    if [[ $(id -u) -ne 0 ]] || missing apt-get; then
        echo "error: install ${wanted[*]}; only root on a system with apt-get can do it from here" >&2
        return 1
    fi
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${wanted[@]}" >/dev/null
}

# The standard library's source, in the version of the compiler, under the cache; prints where.
standard_source() {
    local version at="$cache/rust-src" suite
    version=$(rustc --version | cut -d' ' -f2)
    local source="$at/usr/src/rustc-$version/library"
    if [[ ! -d $source ]]; then
        # An apt of its own: another suite than the system's, and nothing of the system changes.
        mkdir -p "$at/apt/lists/partial" "$at/apt/archives/partial" "$at/apt/sources"
        local mirror
        mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep '/debian/*$' | sort -u | head -n 1)
        for suite in trixie-backports sid; do
            echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] ${mirror:-http://deb.debian.org/debian} $suite main" \
                >"$at/apt/sources/source.list"
            cat >"$at/apt/apt.conf" <<CONFIG
Dir::Etc::sourcelist "/dev/null";
Dir::Etc::sourceparts "$at/apt/sources";
Dir::State::lists "$at/apt/lists";
Dir::Cache "$at/apt";
CONFIG
            if APT_CONFIG="$at/apt/apt.conf" apt-get update -qq &&
                (cd "$at" && APT_CONFIG="$at/apt/apt.conf" apt-get download -qq \
                    "rust-src=$(APT_CONFIG="$at/apt/apt.conf" apt-cache madison rust-src |
                        awk -v version="$version" 'index($3, version) == 1 { print $3; exit }')"); then
                dpkg -x "$at"/rust-src_*.deb "$at"
                break
            fi
        done >&2
    fi
    if [[ ! -d $source ]]; then
        echo "error: no source of the standard library of rustc $version; try rustup target add $target" >&2
        return 1
    fi
    echo "$source"
}

# Sets `standard` to what cargo needs for a standard library of $1; `RUSTAI_CROSS_STD=source` builds it from source.
standard_library() {
    local libraries
    standard=()
    libraries="$(rustc --print sysroot)/lib/rustlib/$1/lib"
    if [[ ${RUSTAI_CROSS_STD:-} != source ]]; then
        if [[ ! -d $libraries ]] && ! missing rustup; then timeout 120 rustup --quiet target add "$1" || true; fi
        if [[ -d $libraries ]]; then return; fi
    fi
    __CARGO_TESTS_ONLY_SRC_ROOT=$(standard_source)
    export RUSTC_BOOTSTRAP=1 __CARGO_TESTS_ONLY_SRC_ROOT
    standard=(-Zbuild-std=std,panic_unwind,test)
}

# Runs the tests as a processor with the features of qemu's $2, which must be the level $3.
level() {
    local arch=$1 processor=$2 best=$3
    echo "--- $arch: $processor, $best"
    env "$runner=qemu-$arch -L /usr/$arch-linux-gnu -cpu $processor" RUSTAI_TEST_BEST="$best" \
        cargo test --release --target "$target" "${standard[@]}" --lib --tests "${arguments[@]}"
}

# What the compiler made of the NEON kernels, in the library that the tests were linked with.
check_neon_code() {
    local library
    library=$(ls -t "$CARGO_TARGET_DIR/$target"/release/deps/librustai_kernels_cpu-*.rlib | head -n 1)
    echo "--- aarch64: code of the integer kernels"
    scripts/check_neon_code.py "$library"
}

for arch in "${architectures[@]}"; do
    case $arch in
        aarch64) debian=arm64 target=aarch64-unknown-linux-gnu ;;
        riscv64) debian=riscv64 target=riscv64gc-unknown-linux-gnu ;;
        *)
            echo "error: $arch is no architecture that this script knows; use aarch64 or riscv64" >&2
            exit 1
            ;;
    esac
    variable=${target//-/_}
    export "CARGO_TARGET_${variable^^}_LINKER=$arch-linux-gnu-gcc"
    export "CC_$variable=$arch-linux-gnu-gcc"
    runner="CARGO_TARGET_${variable^^}_RUNNER"
    packages "$debian" "$arch"
    standard_library "$target"
    case $arch in
        aarch64)
            level "$arch" cortex-a53 neon
            level "$arch" neoverse-n1 neon-dotprod
            level "$arch" max neon-i8mm
            check_neon_code
            ;;
        riscv64) level "$arch" rv64 reference ;;
    esac
done
