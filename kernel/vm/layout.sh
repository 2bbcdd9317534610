#!/bin/sh
# Asks bindgen how C lays the structs of the header out, for 64-bit and for 32-bit programs, and compares that with
# what the suite says of Rust's: sizes, and the offset of each field.
set -eu
. "$(dirname "$0")/env.sh"

mkdir -p "$VM/c"
cp "$REPO/kernel/include/uapi/rustai.h" "$VM/c/"
"$VM/suite/bin/suite" layout | LC_ALL=C sort >"$VM/c/layout.rust"
# Each struct of the header is compared.
[ "$(grep -c ' SIZE ' "$VM/c/layout.rust")" = "$(grep -c '^struct rustai_' "$VM/c/rustai.h")" ]
for width in 64 32; do
    inside bindgen --formatter none --allowlist-type 'rustai_.*' /vm/c/rustai.h -- -m$width >"$VM/c/bindgen.rs"
    # bindgen states each fact as an assertion: ["Size of NAME"][... - 16usize].
    tr ';' '\n' <"$VM/c/bindgen.rs" |
        sed -n -e 's/.*"Size of \(rustai_[a-z_]*\)".* - *\([0-9]*\)usize.*/\1 SIZE \2/p' \
            -e 's/.*"Offset of field: \(rustai_[a-z_]*\)::\([a-z0-9_]*\)".* - *\([0-9]*\)usize.*/\1 \2 \3/p' |
        LC_ALL=C sort >"$VM/c/layout.c"
    diff "$VM/c/layout.rust" "$VM/c/layout.c" || {
        echo "error: C and Rust lay structs out differently, for $width bits" >&2
        exit 1
    }
done
echo "$(wc -l <"$VM/c/layout.rust") sizes and offsets agree, for 64 and for 32 bits"
