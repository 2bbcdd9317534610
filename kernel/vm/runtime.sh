#!/bin/sh
# Adds the runtime's side of the queue to the root of the emulated machine: kernel/vm/runtime.sh FOLDER. That is the
# program `rustai` with its default model, the list of tests that all transports share, and the clients in C and Python.
set -eu
. "$(dirname "$0")/env.sh"

FOLDER=$1
SOURCE=${RUSTAI_SOURCE:-$REPO}
TARGET=x86_64-unknown-linux-gnu
export RUSTFLAGS="-C target-feature=+crt-static" CARGO_TARGET_DIR="$VM/cargo"
cd "$SOURCE"
cargo build --quiet --locked --target "$TARGET" -p rustai-cli
cp "$VM/cargo/$TARGET/debug/rustai" "$FOLDER/bin/rustai"
tests=$(cargo test --locked --no-run --target "$TARGET" -p rustai-tests --test queue 2>&1 |
    sed -n 's/.*Executable .*(\(.*\))$/\1/p')
cp "$tests" "$FOLDER/bin/queue-tests"
strip "$FOLDER/bin/rustai" "$FOLDER/bin/queue-tests" 2>/dev/null || true
# The model comes from the cache, or is fetched into it, as by any other command.
"$FOLDER/bin/rustai" generate hello -n 1 >/dev/null
cache=$("$FOLDER/bin/rustai" info | sed -n 's/^cache folder *//p')
cp "$cache/models/SmolLM2-135M-Instruct.Q4_1.gguf" "$FOLDER/model.gguf"

mkdir -p "$VM/c"
cp examples/queue/client.c "$VM/c/example.c"
cp "$REPO/kernel/include/uapi/rustai.h" "$VM/c/"
for width in 64 32; do
    inside gcc -m$width -O1 -static -std=gnu11 -Wall -Wextra -I /vm/c -o "/vm/c/example$width" /vm/c/example.c
    cp "$VM/c/example$width" "$FOLDER/bin/"
done
# Python as the folder of tools has it, without its own tests.
cp examples/queue/client.py "$FOLDER/client.py"
mkdir -p "$FOLDER/usr/lib" "$FOLDER/usr/bin" "$FOLDER/lib64" "$FOLDER/lib"
cp -L "$ROOT/usr/bin/python3" "$FOLDER/usr/bin/python3"
for library in $(inside sh -c 'ldd /usr/bin/python3 /usr/lib/python3*/lib-dynload/_ctypes*.so' | grep -o '/[^ ]*\.so[^ ]*' | sort -u); do
    case $library in */lib-dynload/*) continue ;; esac
    mkdir -p "$FOLDER$(dirname "$library")"
    cp -L "$ROOT$library" "$FOLDER$library"
done
for folder in "$ROOT"/usr/lib/python3.*; do
    cp -r "$folder" "$FOLDER/usr/lib/"
done
rm -rf "$FOLDER"/usr/lib/python3.*/test "$FOLDER"/usr/lib/python3.*/idlelib
cp "$HERE/runtime-inside.sh" "$FOLDER/runtime"
chmod +x "$FOLDER/runtime"
