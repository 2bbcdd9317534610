#!/bin/sh
# Puts the root of the emulated machine together: kernel/vm/suite.sh FOLDER. Programs are linked statically, so that
# it needs no library: the suite with the host's Rust, the C clients with the compiler of the folder of tools.
set -eu
. "$(dirname "$0")/env.sh"

mkdir -p "$1"
FOLDER=$(cd "$1" && pwd)
command -v cargo >/dev/null || skip "cargo is missing"
TARGET=x86_64-unknown-linux-gnu
(cd "$REPO" && RUSTFLAGS="-C target-feature=+crt-static" CARGO_TARGET_DIR="$VM/cargo" \
    cargo build --quiet --locked --release --target "$TARGET" -p rustai-vm-suite)
rm -rf "$FOLDER"
mkdir -p "$FOLDER/bin" "$FOLDER/dev" "$FOLDER/proc" "$FOLDER/sys" "$FOLDER/tmp" "$FOLDER/root"
cp "$ROOT/usr/bin/busybox" "$FOLDER/bin/busybox"
cp "$VM/cargo/$TARGET/release/rustai-vm-suite" "$FOLDER/bin/suite"
strip "$FOLDER/bin/suite" 2>/dev/null || true
cp "$VM/module/rustai.ko" "$FOLDER/rustai.ko"
cp "$HERE/init.sh" "$FOLDER/init"
chmod +x "$FOLDER/init"
mkdir -p "$VM/c"
cp "$HERE/suite/client.c" "$REPO/kernel/include/uapi/rustai.h" "$VM/c/"
for width in 64 32; do
    inside gcc -m$width -O1 -static -std=gnu11 -Wall -Wextra -Werror -I /vm/c -o "/vm/c/client$width" /vm/c/client.c
    cp "$VM/c/client$width" "$FOLDER/bin/"
done
