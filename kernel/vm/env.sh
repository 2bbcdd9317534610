# Shared by the scripts of this folder: where things lie, and how a command is run inside the folder of tools.
# shellcheck shell=sh

HERE=$(cd "$(dirname "$0")" && pwd)
REPO=$(cd "$HERE/../.." && pwd)
VM=${RUSTAI_VM_DIR:-${CARGO_TARGET_DIR:-$REPO/target}/kernel-vm}
ROOT=$VM/root
# The kernel that the module is built for. Debian builds it with CONFIG_RUST. A mirror keeps only the newest one of a
# series; RUSTAI_KERNEL names another.
KERNEL=${RUSTAI_KERNEL:-7.3.4+deb13-cloud-amd64}
SERIES=$(echo "$KERNEL" | cut -d. -f1,2)
# The compiler by the name that the stock configuration records.
KERNEL_CC=x86_64-linux-gnu-gcc-14
PACKAGES="base-files bash dash coreutils findutils grep sed mawk diffutils gzip tar perl-base hostname libc-bin \
make gcc gcc-multilib libc6-dev flex bison bc cpio kmod xz-utils zstd libelf-dev libssl-dev python3 rsync \
rustc rust-src rustfmt rust-clippy bindgen clang lld llvm dwarves sparse \
linux-source-$SERIES linux-headers-$KERNEL linux-config-$SERIES linux-binary-$KERNEL \
qemu-system-x86 busybox-static"
JOBS=${JOBS:-$(nproc)}

# A host that cannot run the suite says so by this exit status, and names the reason.
skip() {
    echo "SKIP: $*" >&2
    exit 77
}

# Runs a command in the folder of tools: target/kernel-vm is /vm there, the repository /src (read-only).
inside() {
    unshare --help 2>/dev/null | grep -q map-root-user || skip "unshare (util-linux) is missing"
    if [ "$(id -u)" = 0 ]; then map=; else map=--map-root-user; fi
    # shellcheck disable=SC2086
    unshare $map --mount --pid --fork true 2>/dev/null || skip "namespaces are not allowed here"
    # shellcheck disable=SC2086
    unshare $map --mount --pid --fork sh -eu -c '
        root=$1 vm=$2 repo=$3
        shift 3
        mount --rbind /dev "$root/dev"
        mount -t proc proc "$root/proc"
        mount --bind "$vm" "$root/vm"
        mount --bind "$repo" "$root/src"
        mount -o remount,bind,ro "$root/src"
        exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 TERM=dumb JOBS="$JOBS" \
            chroot "$root" "$@"
    ' sh "$ROOT" "$VM" "$REPO" "$@"
}
export JOBS
