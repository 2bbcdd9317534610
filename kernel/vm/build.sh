#!/bin/sh
# Builds rustai.ko against the stock kernel: target/kernel-vm/module/rustai.ko. Further words go to make (CLIPPY=1 W=1).
set -eu
. "$(dirname "$0")/env.sh"
"$HERE/prepare.sh"
# The build writes beside the sources, so it works on a copy; the layout stays, since the module compiles ../abi in.
rm -rf "$VM/src"
mkdir -p "$VM/src/abi" "$VM/module"
cp -r "$REPO/kernel/module" "$VM/src/module"
cp -r "$REPO/kernel/abi/src" "$VM/src/abi/src"
inside make -s -C /vm/obj M=/vm/src/module CC="$KERNEL_CC" KERNELRELEASE="$KERNEL" "$@" modules
cp "$VM/src/module/rustai.ko" "$VM/module/"
