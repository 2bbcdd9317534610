#!/bin/busybox sh
# Runs inside of the emulated machine, after the suite: the runtime over the device.
export PATH=/bin
passed=0
failed=0
# try NAME COMMAND...
try() {
    name=$1
    shift
    if "$@"; then
        echo "ok   runtime: $name"
        passed=$((passed + 1))
    else
        echo "FAIL runtime: $name"
        failed=$((failed + 1))
    fi
}
is_attached() { grep -q '^server: 1' /sys/kernel/debug/rustai/queue; }
is_empty() {
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        grep -q '^audit: ok' /sys/kernel/debug/rustai/queue || return 1
        if ! grep -E '^(server|contexts|in flight|abandoned|buffers|files|rings|commands): [1-9]' /sys/kernel/debug/rustai/queue; then
            return 0
        fi
        sleep 1
    done
    return 1
}
# Answers of a real model, by another process.
generates() {
    answer=$(rustai submit generate 'Why is the sky blue?' --queue device --temperature 0 -n 8) && echo "$answer" && [ -n "$answer" ]
}

insmod /rustai.ko
try 'the tests that all transports share' env RUSTAI_NO_SKIP=1 /bin/queue-tests device:: --test-threads=1
try 'they leave nothing' is_empty
rustai serve --queue device -m /model.gguf &
server=$!
for _ in $(seq 1 300); do is_attached && break; sleep 1; done
try 'the server attaches' is_attached
try 'GENERATE of a real model, from another process' generates
try 'a client in C, 64 bits' /bin/example64 device:/dev/rustai
try 'a client in C, 32 bits' /bin/example32 device:/dev/rustai
try 'a client in Python' /usr/bin/python3 /client.py device:/dev/rustai
try 'NOP, many at once' rustai submit nop --queue device
kill -9 $server
wait $server 2>/dev/null
try 'all is let go of when the server is killed' is_empty
try 'the module unloads' rmmod rustai
echo "runtime: $passed passed, $failed failed, 0 skipped"
