#!/bin/sh
# The suite of the kernel module: builds it, boots the stock kernel with it, and runs the programs of kernel/vm/suite
# there. Ends with a line "N passed, N failed, N skipped". Exit status 77 and a reason mean that this host cannot run it.
# Words are passed on as kernel parameters: fuzz_seconds=600 lengthens the fuzzing. WITH_RUNTIME=1 adds the runtime's
# side: the tests that all transports share, a real model behind the device, and the clients in C and Python.
set -eu
. "$(dirname "$0")/env.sh"

# What must not be in a kernel's log.
BAD='WARNING:|BUG:|BUG |KASAN|UBSAN|Oops|general protection fault|Call Trace|Kernel panic|unreferenced object|'
BAD="$BAD"'refcount_t|possible circular locking|possible recursive locking|inconsistent lock|suspicious RCU|'
BAD="$BAD"'hung_task|blocked for more than|soft lockup|rcu_[a-z]+ (self-)?detected|sleeping function|scheduling while atomic|'
BAD="$BAD"'deprecated|list_(add|del) corruption|rust_kernel: panicked|page_owner|Unable to handle|'
# KUnit's tests, which the debug kernel runs when the module is loaded.
BAD="$BAD"'not ok [0-9]'
# What the kernel's own tests of its Rust code say at boot is not about this module.
bad_lines() {
    grep -aE "$BAD" "$1" | grep -av 'work func _R.*6kernel9workqueue.*5tests'
}

# A check that finds nothing in a log that has a bug in it is worth nothing.
mkdir -p "$VM/boot"
for planted in 'WARNING: CPU: 0 PID: 1 at fs/file.c:1' 'BUG: KASAN: slab-use-after-free in rustai' \
    'WARNING: possible circular locking dependency detected' 'unreferenced object 0xffff888 (size 64):' \
    '    not ok 2 a_ring_consists_of_whole_pages'; do
    printf '[    1.0] %s\n' "$planted" >"$VM/boot/planted"
    bad_lines "$VM/boot/planted" >/dev/null || { echo "error: the log check overlooks: $planted" >&2 && exit 1; }
done

"$HERE/build.sh"
"$HERE/suite.sh" "$VM/suite"
"$HERE/layout.sh"
ends=1
if [ "${WITH_RUNTIME:-0}" = 1 ]; then
    "$HERE/runtime.sh" "$VM/suite"
    ends=2
    export MEMORY="${MEMORY:-2048}"
fi
LOG=$VM/boot/console.log
status=0
"$HERE/boot.sh" "$VM/suite" "$@" | tee "$LOG" || status=$?
# Each program that runs in the machine ends with a line of its own.
verdicts=$(tr -d '\r' <"$LOG" | grep -aE '^(suite|runtime): [0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$' || true)
[ "$(printf '%s\n' "$verdicts" | grep -c .)" = $ends ] || { echo "error: it did not come to an end (status $status)" >&2 && exit 1; }
# What cargo's tests report counts, too.
verdicts="$verdicts
$(tr -d '\r' <"$LOG" | sed -n 's/^test result: [a-zA-Z]*\. \([0-9]*\) passed; \([0-9]*\) failed;.*/tests: \1 passed, \2 failed, 0 skipped/p')"
passed=0 failed=0 skipped=0
while read -r _ p _ f _ s _; do
    passed=$((passed + ${p:-0})) failed=$((failed + ${f:-0})) skipped=$((skipped + ${s:-0}))
done <<VERDICTS
$verdicts
VERDICTS
# The layouts and the log count as one test each.
passed=$((passed + 1))
if bad_lines "$LOG"; then
    echo "FAIL: these lines are in the kernel's log"
    failed=$((failed + 1))
elif ! grep -aq '^ended: ' "$LOG"; then
    echo "FAIL: the machine did not end by itself"
    failed=$((failed + 1))
else
    passed=$((passed + 1))
fi
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
