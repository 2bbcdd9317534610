#!/bin/sh
# Prepares the kernel tree that the module is built against: Debian's source with Debian's configuration. Only `rust/`
# and the scripts are built (a few minutes, once); symbol checksums come from the headers package, so that the module
# loads into the unmodified kernel.
set -eu
. "$(dirname "$0")/env.sh"
"$HERE/root.sh"

[ -e "$VM/obj/.complete" ] && exit 0
[ -e "$VM/linux/Makefile" ] || {
    mkdir -p "$VM/linux.new"
    inside tar -x -J -f /usr/src/linux-source-$SERIES.tar.xz -C /vm/linux.new --strip-components=1 --no-same-owner
    mv "$VM/linux.new" "$VM/linux"
}
mkdir -p "$VM/obj"
cp "$ROOT/usr/src/linux-headers-$KERNEL/.config" "$ROOT/usr/src/linux-headers-$KERNEL/Module.symvers" "$VM/obj/"
inside make -s -C /vm/linux O=/vm/obj CC="$KERNEL_CC" olddefconfig
# Whether OpenSSL knows ML-DSA keys is asked of the build host and concerns signing only.
plain() { grep -v -e MLDSA -e ML_DSA "$1"; }
plain "$ROOT/usr/src/linux-headers-$KERNEL/.config" >"$VM/config.stock"
plain "$VM/obj/.config" | cmp - "$VM/config.stock" || {
    echo "error: the configuration differs from the stock kernel's; a tool of the wrong version?" >&2
    exit 1
}
inside make -s -C /vm/linux O=/vm/obj CC="$KERNEL_CC" -j"$JOBS" modules_prepare KERNELRELEASE="$KERNEL"
: >"$VM/obj/.complete"
