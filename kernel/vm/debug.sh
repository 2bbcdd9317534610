#!/bin/sh
# The suite on a kernel that watches itself (kernel/vm/debug.config): kernel/vm/debug.sh. The kernel is built once, below
# target/kernel-vm/debug, which takes about 17 minutes of one core. It first proves that the kernel catches planted bugs.
set -eu
. "$(dirname "$0")/env.sh"
"$HERE/prepare.sh"

DEBUG=$VM/debug
built="$(cksum <"$HERE/debug.config") $KERNEL"
if [ "$(cat "$DEBUG/.complete" 2>/dev/null)" != "$built" ]; then
    mkdir -p "$DEBUG"
    cp "$HERE/debug.config" "$DEBUG/wanted"
    inside make -s -C /vm/linux O=/vm/debug LLVM=1 tinyconfig
    inside sh -c 'cd /vm/debug && KCONFIG_CONFIG=.config /vm/linux/scripts/kconfig/merge_config.sh -m .config wanted >/dev/null'
    inside make -s -C /vm/linux O=/vm/debug LLVM=1 olddefconfig
    # What was asked for and is not there would be missed silently.
    grep -E '^CONFIG' "$HERE/debug.config" | while read -r line; do
        grep -qxF "$line" "$DEBUG/.config" || { echo "error: not set: $line" >&2 && exit 1; }
    done
    inside make -s -C /vm/linux O=/vm/debug LLVM=1 -j"$JOBS" vmlinux bzImage modules_prepare modules
    printf '%s' "$built" >"$DEBUG/.complete"
fi
export OBJ=debug TOOLS=LLVM=1 IMAGE=/vm/debug/arch/x86/boot/bzImage MEMORY=2048 BOOT_TIMEOUT=3600
# The address sanitizer keeps generic code of the standard library whose last call does not return, which objtool cannot know.
export HARMLESS='objtool: .* falls through to next function'
"$HERE/planted.sh"
exec "$HERE/test.sh" "$@"
