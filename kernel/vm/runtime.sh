#!/bin/sh
# Adds the runtime's side of the queue to the root of the emulated machine: kernel/vm/runtime.sh FOLDER. That is the
# program `rustai` with its default model, the list of tests that all transports share, and the clients in C and Python.
set -eu
. "$(dirname "$0")/env.sh"

FOLDER=$(cd "$1" && pwd)
# Puts a program of the host into /bin, to be run with the host's own libraries: those of the folder of tools, which
# Python needs, may be older or newer.
install_program() {
    mkdir -p "$FOLDER/host"
    cp "$1" "$FOLDER/host/$2"
    strip "$FOLDER/host/$2" 2>/dev/null || true
    for library in $(ldd "$1" | grep -o '/[^ ]*\.so[^ ]*'); do
        cp -L "$library" "$FOLDER/host/"
    done
    printf '#!/bin/sh\nexec /host/ld-linux-x86-64.so.2 --library-path /host /host/%s "$@"\n' "$2" >"$FOLDER/bin/$2"
    chmod +x "$FOLDER/bin/$2"
}

# Built as the workspace's tests are, so that nothing is built twice where they have run; the program is made for its tests.
cd "$REPO"
built=$(cargo test --locked --workspace --no-run --test cli --test queue 2>&1) || {
    echo "$built" >&2
    exit 1
}
install_program "${CARGO_TARGET_DIR:-target}/debug/rustai" rustai
install_program "$(echo "$built" | sed -n 's/.*Executable .*queue[^(]*(\(.*\))$/\1/p')" queue-tests
# The model comes from the cache, or is fetched into it, as by any other command.
rustai=${CARGO_TARGET_DIR:-target}/debug/rustai
"$rustai" generate hello -n 1 >/dev/null
cache=$("$rustai" info | sed -n 's/^cache folder *//p')
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
mkdir -p "$FOLDER/usr/lib" "$FOLDER/usr/bin"
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
