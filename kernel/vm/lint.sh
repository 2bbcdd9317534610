#!/bin/sh
# What kernel developers run over a driver: rustfmt, clippy, rustdoc, sparse and checkpatch, with the kernel's settings.
# Ends with a line that names them all; says what is wrong otherwise.
set -eu
. "$(dirname "$0")/env.sh"
"$HERE/format.sh" --check

# Sparse as it is packaged is older than `__typeof_unqual__`; without it kbuild only says so, and checks nothing.
"$HERE/build.sh" CLIPPY=1 W=1 C=2 CHECK='sparse -D__typeof_unqual__=__typeof__'
if grep -q 'sparse is not available' "$VM/module/log"; then
    echo "error: sparse does not understand this kernel" >&2
    exit 1
fi

# The module's pages, private items included, from the command that compiled it.
sed -n -e 's/^savedcmd_rustai_main.o := //' -e 's/clippy-driver/rustdoc --document-private-items -D warnings/' \
    -e 's/--emit=[^ ]*//g' -e 's/--out-dir [^ ]*/--output \/vm\/doc/p' "$VM/src/module/.rustai_main.o.cmd" >"$VM/src/rustdoc"
inside sh -c 'cd /vm/src/module && RUSTC_BOOTSTRAP=1 sh -eu ../rustdoc'

# BIT() is not for headers that programs include.
inside perl /vm/linux/scripts/checkpatch.pl --no-tree --strict --terse --ignore BIT_MACRO --file \
    /src/kernel/module/rustai_shim.c /src/kernel/module/rustai_shim.h /src/kernel/include/uapi/rustai.h
echo "rustfmt, clippy, rustdoc, sparse and checkpatch are content"
