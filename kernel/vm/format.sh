#!/bin/sh
# Formats the module with the kernel's settings; with --check, says what it would change instead.
set -eu
. "$(dirname "$0")/env.sh"
"$HERE/prepare.sh"

status=0
mkdir -p "$VM/format"
cp "$VM/linux/.rustfmt.toml" "$VM/format/rustfmt.toml"
for file in "$REPO"/kernel/module/*.rs "$REPO"/kernel/vm/planted/*.rs; do
    # From its standard input, since it would follow `mod` into the interface, which has the repository's format.
    cp "$file" "$VM/format/in.rs"
    inside sh -c 'rustfmt --edition 2021 --config-path /vm/format </vm/format/in.rs >/vm/format/out.rs'
    if ! cmp -s "$VM/format/in.rs" "$VM/format/out.rs"; then
        if [ "${1:-}" = --check ]; then
            diff -u "$file" "$VM/format/out.rs" || status=1
        else
            cp "$VM/format/out.rs" "$file"
        fi
    fi
done
exit $status
