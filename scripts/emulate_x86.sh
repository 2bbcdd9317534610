#!/usr/bin/env bash
# Runs the tests of the CPU kernels for x86-64 instruction sets that this processor lacks, on an emulated machine: Bochs
# boots a stock Linux kernel whose only program is the tests. Speed under emulation says nothing; results do.
#
#     scripts/emulate_x86.sh [avx-vnni|avx512bw|avx512]... [-- arguments of the tests, such as a test's name or --list]
#
# Without levels: those that this processor lacks; what it has is tested by `cargo test`. Without arguments of the tests:
# all tests of the kernels, and the crate's own ones that depend on the instruction set. Each level gets a processor that
# has it as its best, as the tests verify (`RUSTAI_TEST_BEST`). A level takes about 12 billion emulated instructions, which
# is two to three minutes of one quiet core; as many levels run at a time as there are cores.
#
# Needs Debian or a system like it. Installs small tools as packages if they are missing; the kernel and Bochs, which is
# built from Debian's source since no packaged build knows all levels without a debugger that slows it down, stay under
# target/emulate. RUSTAI_EMULATE_LIMIT is the most seconds that a machine may run (default 1800).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

work="${CARGO_TARGET_DIR:-$PWD/target}/emulate"
limit="${RUSTAI_EMULATE_LIMIT:-1800}"
target=x86_64-unknown-linux-gnu
mkdir -p "$work"

# Level, the processor's flag in /proc/cpuinfo that makes it, and Bochs' name of a processor whose best it is.
known=(
    "avx-vnni avx_vnni arrow_lake"
    "avx512bw avx512bw corei7_skylake_x"
    "avx512 avx512_vnni corei7_icelake_u"
)

missing() { ! command -v "$1" >/dev/null 2>&1; }

packages() {
    local wanted=()
    if missing g++ || missing make; then wanted+=(build-essential); fi
    if missing mformat; then wanted+=(mtools); fi
    if missing syslinux; then wanted+=(syslinux syslinux-common); fi
    if missing cpio; then wanted+=(cpio); fi
    if missing xz; then wanted+=(xz-utils); fi
    if [[ ! -x /bin/busybox ]] || ldd /bin/busybox >/dev/null 2>&1; then wanted+=(busybox-static); fi
    if ((${#wanted[@]} == 0)); then return; fi
    if [[ $(id -u) -ne 0 ]] || missing apt-get; then
        echo "error: install ${wanted[*]}; only root on a system with apt-get can do it from here" >&2
        return 1
    fi
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${wanted[@]}" >/dev/null
}

# An apt of its own for Debian's release $1 under the work folder: nothing of the system changes. Prints its configuration.
private_apt() {
    local at="$work/apt-$1" mirror
    if [[ ! -f $at/ready ]]; then
        mkdir -p "$at/lists/partial" "$at/archives/partial" "$at/sources"
        mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep '/debian/*$' | sort -u | head -n 1)
        mirror="[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] ${mirror:-http://deb.debian.org/debian} $1 main"
        printf 'deb %s\ndeb-src %s\n' "$mirror" "$mirror" >"$at/sources/source.list"
        : >"$at/status"
        cat >"$at/apt.conf" <<CONFIG
Dir::Etc::sourcelist "/dev/null";
Dir::Etc::sourceparts "$at/sources";
Dir::State::lists "$at/lists";
Dir::State::status "$at/status";
Dir::Cache "$at";
APT::Sandbox::User "root";
CONFIG
        APT_CONFIG="$at/apt.conf" apt-get update -qq >&2
        touch "$at/ready"
    fi
    echo "$at/apt.conf"
}

# Bochs without a display or a debugger; sets `bochs` to its folder.
build_bochs() {
    bochs="$work/bochs"
    if [[ -x $bochs/bochs ]]; then return; fi
    echo "--- building Bochs"
    local config suite
    rm -rf "$bochs" "$work"/bochs_*
    mkdir -p "$bochs"
    # Version 3 or newer: older ones have no AVX-VNNI.
    for suite in trixie sid; do
        config=$(private_apt "$suite")
        if (cd "$work" && APT_CONFIG="$config" apt-get source -qq --download-only --tar-only bochs); then break; fi
    done
    tar -xf "$work"/bochs_*.orig.tar.* -C "$bochs" --strip-components=1
    if ! (cd "$bochs" &&
        ./configure --with-nogui --without-x --without-x11 --disable-plugins --disable-docbook --disable-large-ramfile \
            --enable-cpu-level=6 --enable-x86-64 --enable-fpu --enable-avx --enable-evex --enable-pci \
            --enable-all-optimizations CFLAGS=-O2 CXXFLAGS=-O2 &&
        make -j"$(nproc)" bochs) >"$work/bochs.log" 2>&1; then
        tail -n 20 "$work/bochs.log" >&2
        echo "error: Bochs does not build; $work/bochs.log says more" >&2
        return 1
    fi
}

# A stock kernel; sets `kernel` to its image.
fetch_kernel() {
    local config package
    kernel="$work/vmlinuz"
    if [[ -f $kernel ]]; then return; fi
    config=$(private_apt bookworm)
    package=$(APT_CONFIG="$config" apt-cache depends linux-image-cloud-amd64 | awk '$1 == "Depends:" { print $2; exit }')
    rm -rf "$work/kernel"
    mkdir "$work/kernel"
    (cd "$work/kernel" && APT_CONFIG="$config" apt-get download -qq "$package" && dpkg -x "$package"_*.deb .)
    cp "$work"/kernel/boot/vmlinuz-* "$kernel"
    rm -rf "$work/kernel"
}

# The tests as programs that need no libraries; sets `tests` to their paths.
build_tests() {
    local log="$work/build.log"
    # No link-time optimisation: it takes long and changes no kernel. Nothing for benchmarks either (kernels-cpu/Cargo.toml).
    if ! CARGO_TARGET_DIR="$work" CARGO_INCREMENTAL=0 RUSTFLAGS="-C target-feature=+crt-static --cfg rustai_without_benches" \
        CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 CARGO_PROFILE_RELEASE_DEBUG=0 \
        cargo test --release --target "$target" -p rustai-kernels-cpu --lib --test kernels --no-run 2>&1 | tee "$log"; then
        return 1
    fi
    mapfile -t tests < <(sed -n 's/^ *Executable .*(\(.*\))$/\1/p' "$log")
    if ((${#tests[@]} == 0)); then
        echo "error: cargo names no test binary" >&2
        return 1
    fi
}

# Puts a disk into the folder $1 that boots the tests as level $2, with the arguments that follow.
make_disk() {
    local at=$1 level=$2 root="$1/root" test
    shift 2
    mkdir -p "$root"/{bin,dev,proc,sys,tmp,tests}
    cp /bin/busybox "$root/bin/"
    for test in "${tests[@]}"; do
        strip -o "$root/tests/$(basename "${test%-*}")" "$test"
    done
    {
        echo '#!/bin/busybox sh'
        printf 'given=%q\n' "$*"
        cat <<'INIT'
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
exec >/dev/ttyS0 2>&1
$b uname -sr
$b grep -m 1 'model name' /proc/cpuinfo
INIT
        echo "export RUSTAI_TEST_BEST=$level RUST_TEST_THREADS=1 RUST_BACKTRACE=0"
        cat <<'INIT'
status=0
for test in /tests/*; do
    case $test in
        */kernels) arguments=$given ;;
        *) arguments=${given:-isa:: roof:: bench::} ;;
    esac
    echo "running $test $arguments"
    $test $arguments || status=$?
done
echo "emulated tests ended with $status after $($b cut -d' ' -f1 /proc/uptime) s"
# The serial port is slow, and what it has not sent would be lost.
$b sleep 5
$b poweroff -f
INIT
    } >"$root/init"
    chmod +x "$root/init"
    (cd "$root" && find . | cpio --create --format=newc --quiet) >"$at/initrd"
    # The clock of the emulated processor is the count of its instructions (`ips` below). Its "fast strings" are off, and
    # then kernels of this age must not be told that short copies are fast (FSRM), or they copy wrongly.
    cat >"$at/syslinux.cfg" <<CONFIG
DEFAULT linux
LABEL linux
 KERNEL vmlinuz
 INITRD initrd
 APPEND console=ttyS0 loglevel=3 panic=-1 mitigations=off nokaslr idle=halt tsc_early_khz=$((ips / 1000)) clearcpuid=fsrm lsm= audit=0
CONFIG
    # 16 heads and 63 sectors of 512 bytes make 504 KiB cylinders.
    cylinders=$(($(du -sk --apparent-size "$kernel" "$at/initrd" | awk '{ sum += $1 } END { print sum }') / 504 + 10))
    truncate -s $((cylinders * 504))K "$at/disk"
    mformat -i "$at/disk" -t "$cylinders" -h 16 -s 63 ::
    mcopy -i "$at/disk" "$kernel" ::vmlinuz
    mcopy -i "$at/disk" "$at/initrd" "$at/syslinux.cfg" ::
    syslinux --install "$at/disk"
    rm -rf "$root" "$at/initrd"
}

# Runs the tests as level $1 on Bochs' processor $2, with the arguments that follow; what they print goes to the level's
# log.
level() {
    local level=$1 processor=$2 at="$work/$1" started=$SECONDS
    shift 2
    rm -rf "$at"
    mkdir "$at"
    make_disk "$at" "$level" "$@"
    cat >"$at/bochsrc" <<CONFIG
config_interface: textconfig
display_library: nogui
megs: 256
romimage: file=$bochs/bios/bios.bin-1.13.0
vgaromimage: file=$bochs/bios/vgabios-cirrus.bin-1.13.0
cpu: model=$processor, ips=$ips, reset_on_triple_fault=0
clock: sync=none, time0=utc
ata0-master: type=disk, path=$at/disk, mode=flat, cylinders=$cylinders, heads=16, spt=63
boot: disk
com1: enabled=1, mode=file, dev=$at/serial.log
log: $at/bochs.log
panic: action=fatal
error: action=ignore
CONFIG
    timeout "$limit" "$bochs/bochs" -q -f "$at/bochsrc" >"$at/bochs.out" 2>&1 </dev/null || true
    rm -f "$at/disk"
    echo "$((SECONDS - started))" >"$at/seconds"
}

# Shows what level $1 printed; whether its tests passed.
verdict() {
    local at="$work/$1" processor=$2 ended
    echo "--- $1: $processor, $(cat "$at/seconds") s"
    tr -d '\r' <"$at/serial.log" >"$at/log" 2>/dev/null || true
    cat "$at/log"
    ended=$(sed -n 's/^emulated tests ended with \([0-9]*\) .*/\1/p' "$at/log")
    if [[ -z $ended ]]; then
        tail -n 3 "$at/bochs.out" "$at/bochs.log" >&2
        echo "error: the emulated machine did not end the tests; RUSTAI_EMULATE_LIMIT is $limit s" >&2
        return 1
    fi
    ((ended == 0))
}

# Instructions per second of emulated time: few, so that the kernel's waits for its devices are short.
ips=20000000
wanted=()
while (($#)) && [[ $1 != -- ]]; do
    wanted+=("$1")
    shift
done
if (($#)); then shift; fi

levels=()
if ((${#wanted[@]} == 0)); then
    for line in "${known[@]}"; do
        read -r name flag _ <<<"$line"
        if grep -q -w "$flag" /proc/cpuinfo; then
            echo "$name: this processor has it, so the tests cover it without emulation"
        else
            levels+=("$line")
        fi
    done
    if ((${#levels[@]} == 0)); then exit 0; fi
fi
for name in "${wanted[@]}"; do
    found=
    for line in "${known[@]}"; do
        if [[ ${line%% *} == "$name" ]]; then found=$line; fi
    done
    if [[ -z $found ]]; then
        echo "error: $name is no level that this script knows; use ${known[*]%% *}" >&2
        exit 1
    fi
    levels+=("$found")
done

packages
build_bochs
fetch_kernel
build_tests
running=0
for line in "${levels[@]}"; do
    read -r name _ processor <<<"$line"
    if ((running >= $(nproc))); then
        wait -n
        running=$((running - 1))
    fi
    level "$name" "$processor" "$@" &
    running=$((running + 1))
done
wait
failed=0
for line in "${levels[@]}"; do
    read -r name _ processor <<<"$line"
    verdict "$name" "$processor" || failed=$((failed + 1))
done
exit $((failed > 0))
