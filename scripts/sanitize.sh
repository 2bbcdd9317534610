#!/usr/bin/env bash
# Looks for memory errors: runs tests, and the fuzz targets for a while, with AddressSanitizer, which stops at accesses
# outside of allocations, after they were freed, and at leaks. It sees vector loads and stores too. What the kernels map by
# themselves ends at a page that nobody may touch (kernels-cpu/src/memory.rs). Works with the stable compiler
# (RUSTC_BOOTSTRAP lets it take the options), so no nightly compiler and no cargo-fuzz are needed.
#
#     scripts/sanitize.sh [tests|fuzz|cuda]... [-- cargo's arguments for the tests, such as -p rustai-tests, or for cuda --test rows]
#
# Without arguments: the tests of the kernels and of the runtime's library, then each fuzz target for
# RUSTAI_FUZZ_SECONDS (default 120). `cuda` runs the CUDA kernels under their emulator with the sanitizers of the C++ compiler:
# device memory there is the heap, so an access outside of an allocation is found. Finds are left in tests/fuzz/artifacts. Builds under target/sanitize.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

target=$(rustc -vV | sed -n 's/^host: //p')
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target}/sanitize"
export RUSTC_BOOTSTRAP=1 CARGO_INCREMENTAL=0
export ASAN_OPTIONS="detect_stack_use_after_return=1:strict_string_checks=1:allocator_may_return_null=1${ASAN_OPTIONS:+:$ASAN_OPTIONS}"

kinds=()
while (($#)) && [[ $1 != -- ]]; do
    kinds+=("$1")
    shift
done
if (($#)); then shift; fi
arguments=("$@")
if ((${#kinds[@]} == 0)); then kinds=(tests fuzz); fi

run_tests() {
    local tests=("${arguments[@]}")
    if ((${#tests[@]} == 0)); then tests=(-p rustai-kernels-cpu -p rustai --lib --tests); fi
    RUSTFLAGS="-Zsanitizer=address --cfg rustai_guard" cargo test --target "$target" "${tests[@]}"
}

# What cargo-fuzz would pass: coverage of edges, and comparisons as hints, for libFuzzer.
run_fuzz() {
    local name seconds="${RUSTAI_FUZZ_SECONDS:-120}"
    local coverage="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
-Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares"
    RUSTFLAGS="-Zsanitizer=address $coverage --cfg rustai_guard --cfg fuzzing -Ccodegen-units=1 -Cdebug-assertions" \
        cargo build --release --manifest-path tests/fuzz/Cargo.toml --target "$target"
    for name in tests/fuzz/fuzz_targets/*.rs; do
        name=$(basename "$name" .rs)
        echo "--- $name, $seconds s"
        # What it learns stays out of the seeds in the repository.
        mkdir -p "$CARGO_TARGET_DIR/corpus/$name" tests/fuzz/artifacts
        local folders=("$CARGO_TARGET_DIR/corpus/$name") options=()
        if [[ -d tests/fuzz/corpus/$name ]]; then folders+=("tests/fuzz/corpus/$name"); fi
        # Its inputs of any length are as good as short ones.
        if [[ $name == matmul ]]; then options+=(-len_control=0); fi
        "$CARGO_TARGET_DIR/$target/release/$name" "${options[@]}" -max_total_time="$seconds" -print_final_stats=1 \
            -artifact_prefix="tests/fuzz/artifacts/$name-" "${folders[@]}"
    done
}

run_cuda() {
    local tests=("${arguments[@]}") test
    if ((${#tests[@]} == 0)); then
        for test in kernels-cuda/tests/*.rs; do tests+=(--test "$(basename "$test" .rs)"); done
    fi
    # Built as the workspace's tests are, so that nothing is built twice where they have run.
    tests=(--workspace "${tests[@]}")
    # The sanitizer must be there first, since the program opens the emulator later. Fibers leave no leaks worth telling.
    local library
    library=$("${CXX:-c++}" -print-file-name=libasan.so)
    unset RUSTFLAGS RUSTC_BOOTSTRAP
    CARGO_TARGET_DIR="${CARGO_TARGET_DIR%/sanitize}" cargo test --no-run "${tests[@]}"
    CARGO_TARGET_DIR="${CARGO_TARGET_DIR%/sanitize}" RUSTAI_EMU_SANITIZE=address,undefined \
        CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER="env LD_PRELOAD=$library ASAN_OPTIONS=detect_leaks=0" \
        cargo test "${tests[@]}"
}

for kind in "${kinds[@]}"; do
    case $kind in
        cuda) run_cuda ;;
        tests) run_tests ;;
        fuzz) run_fuzz ;;
        *)
            echo "error: $kind is no kind of check; use tests, fuzz or cuda" >&2
            exit 1
            ;;
    esac
done
