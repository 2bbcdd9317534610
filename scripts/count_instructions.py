#!/usr/bin/env python3
"""Counts the instructions of the hottest kernels with callgrind and compares them with the record.

Time is noisy on shared machines, instruction counts are not: a kernel that needs more of them than the record says has
become slower. Valgrind knows no AVX-512, so the AVX2 kernels are counted.

    scripts/count_instructions.py            compares; exit code 1 if a count is off by more than the tolerance
    scripts/count_instructions.py --update   writes the record anew

Counts depend on the compiler. With another rustc than the record's, differences are shown but are no failure.
"""

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "kernels-cpu" / "instructions.json"
ISA = "avx2"
# Largest difference, as a part of the recorded count, that is not a change.
TOLERANCE = 0.02


def build() -> Path:
    """Builds the program that runs one kernel, and returns its path."""
    command = ["cargo", "build", "--quiet", "--release", "--package", "rustai-kernels-cpu", "--example", "count_instructions"]
    # Leaves out what only benchmarks need (kernels-cpu/Cargo.toml).
    flags = f"{os.environ.get('RUSTFLAGS', '')} --cfg rustai_without_benches".strip()
    output = subprocess.run(
        [*command, "--message-format=json-render-diagnostics"],
        cwd=ROOT,
        env=dict(os.environ, RUSTFLAGS=flags),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    for line in output.splitlines():
        message = json.loads(line)
        if message.get("reason") == "compiler-artifact" and message["target"]["name"] == "count_instructions":
            return Path(message["executable"])
    sys.exit("error: cargo names no program for the example count_instructions")


def count(program: Path, kernel: str) -> int:
    """Instructions of one run of a kernel."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "callgrind.out"
        command = ["valgrind", "--tool=callgrind", "--toggle-collect=*measured_region*", f"--callgrind-out-file={out}"]
        run = subprocess.run(
            [*command, str(program), kernel],
            env={**os.environ, "RUSTAI_CPU": ISA},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if run.returncode != 0:
            sys.exit(f"error: {kernel}: valgrind ended with {run.returncode}\n{run.stdout}")
        total = re.search(r"^(?:summary|totals): (\d+)", out.read_text(), re.MULTILINE)
    if total is None or int(total[1]) == 0:
        sys.exit(f"error: {kernel}: callgrind counted nothing; is measured_region still entered?")
    return int(total[1])


def skip_reason() -> str | None:
    if platform.machine() != "x86_64":
        return f"{ISA} kernels are counted, and this is {platform.machine()}"
    if ISA not in Path("/proc/cpuinfo").read_text().split():
        return f"this processor has no {ISA}"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help="write the record anew")
    args = parser.parse_args()
    if reason := skip_reason():
        print(f"skipped: {reason}")
        return 0
    if shutil.which("valgrind") is None:
        print("error: valgrind is missing; install it (apt-get install valgrind)", file=sys.stderr)
        return 1

    rustc = subprocess.run(["rustc", "--version"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    program = build()
    kernels = subprocess.run([program], capture_output=True, text=True, check=True).stdout.splitlines()
    counts = {kernel: count(program, kernel) for kernel in kernels}
    if args.update:
        RECORD.write_text(json.dumps({"rustc": rustc, "isa": ISA, "instructions": counts}, indent=2) + "\n")
        print(f"recorded in {RECORD.relative_to(ROOT)}:")
        for kernel, instructions in counts.items():
            print(f"  {kernel:<20} {instructions:>12,}")
        return 0

    record = json.loads(RECORD.read_text())
    recorded = record["instructions"]
    print(f"{'kernel':<20} {'recorded':>12} {'now':>12} {'change':>9}")
    off = 0
    for kernel in sorted({*recorded, *counts}):
        before, now = recorded.get(kernel), counts.get(kernel)
        if before is None or now is None:
            verdict = "  <-- not in the record" if before is None else "  <-- gone"
            change = ""
        else:
            difference = now / before - 1
            change = f"{difference:+.2%}"
            verdict = ""
            if difference > TOLERANCE:
                verdict = "  <-- MORE"
            elif difference < -TOLERANCE:
                verdict = "  <-- fewer"
        off += verdict != ""
        print(f"{kernel:<20} {before or 0:>12,} {now or 0:>12,} {change:>9}{verdict}")
    if off == 0:
        return 0
    if rustc != record["rustc"]:
        print(f"notice: recorded with {record['rustc']}, this is {rustc}: no failure, but no check either")
        return 0
    print(
        f"error: {off} of the counts are off by more than {TOLERANCE:.0%}. If that is meant, record them anew with\n"
        "  scripts/count_instructions.py --update\n"
        "and say in the commit why.",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
