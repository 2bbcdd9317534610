#!/bin/sh
# Builds rustai.ko against the stock kernel: target/kernel-vm/module/rustai.ko. Further words go to make (CLIPPY=1 W=1).
# A warning is an error, unless HARMLESS, a pattern, matches it. OBJ and TOOLS choose another kernel tree below
# target/kernel-vm and its tools.
set -eu
. "$(dirname "$0")/env.sh"
"$HERE/prepare.sh"
# The build writes beside the sources, so it works on a copy; the layout stays, since the module compiles ../abi in.
rm -rf "$VM/src"
mkdir -p "$VM/src/abi" "$VM/module"
cp -r "$REPO/kernel/module" "$VM/src/module"
cp -r "$REPO/kernel/abi/src" "$VM/src/abi/src"
# TOOLS are words for make.
# shellcheck disable=SC2086
inside make -s -C "/vm/${OBJ:-obj}" M=/vm/src/module ${TOOLS:-CC=$KERNEL_CC KERNELRELEASE=$KERNEL} "$@" modules >"$VM/module/log" 2>&1 || {
    cat "$VM/module/log" >&2
    exit 1
}
cat "$VM/module/log"
if grep 'warning' "$VM/module/log" | grep -Evq "${HARMLESS:-^\$}"; then
    echo "error: the module does not build without a warning" >&2
    exit 1
fi
cp "$VM/src/module/rustai.ko" "$VM/module/"
