#!/usr/bin/env python3
"""Reads the machine code of the kernels and asserts what makes them fast.

- Each integer kernel holds its instruction set's dot product (see EXPECTED), itself or in a function of ours that it calls.
- No hot loop keeps vectors on the stack. A hot loop is an innermost loop that multiplies; it is found by its backward
  jump. A whole vector that is fetched from a fixed place on the stack there was spilled. Not counted: elements of arrays
  that are broadcast, stores (arrays are prepared so; what was stored to be fetched again is counted when it is fetched),
  and addresses and counters, which cost little and are told with --verbose only.

What spills all the same is recorded with its number of fetches per function. Three more of them than recorded are a failure.

    scripts/inspect_kernels.py                                builds the release program that holds all kernels, and reads it
    scripts/inspect_kernels.py --update                       writes the record of spills anew
    scripts/inspect_kernels.py --binary FILE --objdump TOOL   reads another program, such as one for AArch64
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from count_instructions import ROOT, build

RECORD = ROOT / "kernels-cpu" / "spills.json"
# Registers are allotted a little differently when other code of the crate changes.
SLACK = 2


@dataclass(frozen=True)
class Expected:
    """Functions whose names match `functions` need one of `instructions`; there are at least `least` such functions."""

    functions: str
    instructions: tuple[str, ...]
    least: int


@dataclass(frozen=True)
class Machine:
    """How to read the code of an architecture."""

    # Functions that belong to the kernels: the calls between them are followed, and their loops are read.
    ours: str
    expected: tuple[Expected, ...]
    # A jump within a function, with its target in hexadecimal, and a call.
    jump: re.Pattern
    call: re.Pattern
    # Instructions that multiply: loops without them are not hot.
    multiplies: re.Pattern
    # A vector register, and a fixed place on the stack; array elements on the stack have an index register besides.
    vector: re.Pattern
    slot: re.Pattern
    # Instructions that store, and those that take one element of the stack to all lanes.
    stores: re.Pattern
    broadcasts: re.Pattern
    # How a function starts that keeps the stack's place in the frame pointer, and a fixed place relative to that.
    frame: re.Pattern
    frame_slot: re.Pattern


MACHINES = {
    "x86-64": Machine(
        ours=r"rustai_kernels_cpu::(x86_64|simd|vector)",
        expected=(
            Expected(r"x86_64::avx512_int::vnni::\w+$", ("vpdpbusd",), 5),
            Expected(r"x86_64::avx512_int::pairs::\w+$", ("vpmaddubsw",), 5),
            Expected(r"x86_64::avx2_int::vnni::\w+$", ("vpdpbusd",), 5),
            Expected(r"x86_64::avx2_int::pairs::\w+$", ("vpmaddubsw",), 5),
        ),
        jump=re.compile(r"^j\w+\s+(?:0x)?([0-9a-f]+)\b"),
        call=re.compile(r"^call\w*\s+(?:0x)?[0-9a-f]+ <(.+)>$"),
        multiplies=re.compile(r"^(vpdp\w+|vpmadd\w+|vfn?madd\w+)\s"),
        vector=re.compile(r"%[xyz]mm\d+"),
        slot=re.compile(r"(?<![\w)])-?(0x[0-9a-f]+)?\(%rsp\)"),
        stores=re.compile(r"^vmov\w+\s+%[xyz]mm\d+,[^%]*\(|^vextract\w+\s.*,[^%]*\(%\w+\)$"),
        broadcasts=re.compile(r"^vp?broadcast"),
        frame=re.compile(r"^mov\s+%rsp,%rbp"),
        frame_slot=re.compile(r"(?<![\w)])-?(0x[0-9a-f]+)?\(%rbp\)"),
    ),
    "aarch64": Machine(
        ours=r"rustai_kernels_cpu::(aarch64|simd|vector)",
        expected=(
            Expected(r"aarch64::int::neon::\w+$", ("smlal", "smlal2"), 5),
            Expected(r"aarch64::int::dotprod::\w+$", ("sdot",), 5),
            Expected(r"aarch64::int::i8mm::\w+$", ("smmla",), 5),
        ),
        jump=re.compile(r"^(?:b|b\.\w+|cbn?z|tbn?z)\s.*?(?:0x)?([0-9a-f]+) <"),
        call=re.compile(r"^bl\s+(?:0x)?[0-9a-f]+ <(.+)>$"),
        multiplies=re.compile(r"^([su]dot|[su]mmla|[su]mlal2?|[su]mull2?|fmla)\s"),
        vector=re.compile(r"\b[qvd]\d+"),
        slot=re.compile(r"\[sp(, #-?(0x)?[0-9a-f]+)?\]"),
        stores=re.compile(r"^st(u?r|n?p|\d)\s"),
        broadcasts=re.compile(r"^ld\d?r\s"),
        frame=re.compile(r"^(mov|add)\s+x29, sp"),
        frame_slot=re.compile(r"\[x29(, #-?(0x)?[0-9a-f]+)?\]"),
    ),
}


@dataclass
class Function:
    name: str
    lines: list[tuple[int, str]] = field(default_factory=list)

    def loops(self, machine: Machine) -> list[tuple[int, int]]:
        """First and last address of each innermost loop."""
        first, last = self.lines[0][0], self.lines[-1][0]
        loops = set()
        for address, text in self.lines:
            if jump := machine.jump.match(text):
                target = int(jump[1], 16)
                if first <= target <= address <= last:
                    loops.add((target, address))
        inside = lambda one, other: one != other and other[0] <= one[0] and one[1] <= other[1]
        return sorted(loop for loop in loops if not any(inside(other, loop) for other in loops))

    def between(self, first: int, last: int) -> list[str]:
        return [text for address, text in self.lines if first <= address <= last]

    def on_stack(self, machine: Machine, first: int, last: int) -> list[tuple[int, str]]:
        """Instructions of a loop that use a fixed place on the stack, with their addresses."""
        framed = any(machine.frame.match(text) for _, text in self.lines[:40])
        slots = [machine.slot, machine.frame_slot] if framed else [machine.slot]
        loop = [(address, text) for address, text in self.lines if first <= address <= last]
        return [(address, text) for address, text in loop if any(slot.search(text) for slot in slots)]


def disassemble(objdump: str, binary: Path) -> list[Function]:
    """All functions of a program. Names are demangled and without the compiler's hash."""
    command = [objdump, "--disassemble", "--demangle", "--no-show-raw-insn", str(binary)]
    functions = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, errors="replace") as process:
        for line in process.stdout:
            if line.startswith(" "):
                address, _, text = line.strip().partition(":")
                text = text.split("#")[0].strip() if "%" in text else text.strip()
                # How objdump marks the shorter coding of an instruction that AVX-512 has too.
                text = text.removeprefix("{vex} ")
                if functions and text and re.fullmatch(r"[0-9a-f]+", address):
                    functions[-1].lines.append((int(address, 16), text))
            elif line.rstrip().endswith(">:"):
                functions.append(Function(re.sub(r"::h[0-9a-f]{16}$", "", line.split("<", 1)[1].rstrip()[:-2])))
    if process.returncode != 0:
        sys.exit(f"error: {objdump} ended with {process.returncode}")
    return [function for function in functions if function.lines]


def reached(function: Function, by_name: dict[str, Function], machine: Machine) -> list[Function]:
    """The function and those of ours that it calls, directly or not."""
    seen, todo = {}, [function]
    while todo:
        one = todo.pop()
        if one.name in seen:
            continue
        seen[one.name] = one
        for _, text in one.lines:
            if call := machine.call.match(text):
                called = by_name.get(re.sub(r"::h[0-9a-f]{16}$", "", call[1]))
                if called is not None and re.search(machine.ours, called.name):
                    todo.append(called)
    return list(seen.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, help="program to read; without it, one is built")
    parser.add_argument("--objdump", default="objdump", help="disassembler, such as aarch64-linux-gnu-objdump")
    parser.add_argument("--update", action="store_true", help="write the record of spills anew")
    parser.add_argument("--verbose", action="store_true", help="tell every hot loop")
    args = parser.parse_args()
    if shutil.which(args.objdump) is None:
        print(f"skipped: {args.objdump} is missing; install binutils")
        return 0
    binary = args.binary or build()
    header = subprocess.run([args.objdump, "--file-headers", str(binary)], capture_output=True, text=True, check=True)
    name = re.search(r"architecture: (?:i386:)?([\w-]+)", header.stdout)
    machine = MACHINES.get(name[1]) if name else None
    if machine is None:
        print(f"skipped: nothing is known about the code of {name[1] if name else binary}")
        return 0

    functions = disassemble(args.objdump, binary)
    by_name = {function.name: function for function in functions}
    failures = []
    for expected in machine.expected:
        kernels = [function for function in functions if re.search(expected.functions, function.name)]
        if len(kernels) < expected.least:
            failures.append(f"{len(kernels)} functions match {expected.functions}, at least {expected.least} should")
        for kernel in kernels:
            texts = [text for one in reached(kernel, by_name, machine) for _, text in one.lines]
            found = sum(text.split()[0] in expected.instructions for text in texts)
            if found == 0:
                failures.append(f"{kernel.name} has no {' or '.join(expected.instructions)}")
            elif args.verbose:
                print(f"{kernel.name}: {found} x {' or '.join(expected.instructions)}")
        print(f"{len(kernels)} kernels match {expected.functions}: {' or '.join(expected.instructions)}")

    rustc = subprocess.run(["rustc", "--version"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {"rustc": rustc, "fetches": {}}
    hot = 0
    spills: dict[str, int] = {}
    for function in functions:
        if not re.search(machine.ours, function.name):
            continue
        shown = []
        # Loops may share instructions, if one has two ends.
        counted: set[int] = set()
        for first, last in function.loops(machine):
            loop = function.between(first, last)
            if not any(machine.multiplies.match(text) for text in loop):
                continue
            hot += 1
            stack = function.on_stack(machine, first, last)
            fetches = [
                (address, text)
                for address, text in stack
                if machine.vector.search(text) and not machine.stores.match(text) and not machine.broadcasts.match(text)
            ]
            if args.verbose:
                print(f"{function.name} {first:x}-{last:x}: {len(loop)} instructions, {len(stack)} use the stack")
            if fetches:
                counted.update(address for address, _ in fetches)
                shown.append(f"  {first:x}-{last:x}, {len(loop)} instructions:" + "".join(f"\n    {text}" for _, text in fetches))
        if counted:
            spills[function.name] = spills.get(function.name, 0) + len(counted)
        allowed, found = record["fetches"].get(function.name, 0), spills.get(function.name, 0)
        if found > allowed + SLACK and not args.update:
            words = (
                f"{function.name} fetches spilled vectors {found} times in hot loops, {allowed} are recorded:\n" + "\n".join(shown)
            )
            if rustc == record["rustc"]:
                failures.append(words)
            else:
                print(f"notice: recorded with {record['rustc']}, this is {rustc}, so this is no failure: {words}")
    print(f"{hot} hot loops read; {sum(spills.values())} fetches of spilled vectors in {len(spills)} functions")
    for name, found in spills.items():
        print(f"  {name}: {found}")
    if hot == 0:
        failures.append("no hot loop was found")
    recorded = {name: count for name, count in record["fetches"].items() if re.search(machine.ours, name)}
    fewer = [name for name, allowed in recorded.items() if spills.get(name, 0) < allowed]
    if args.update:
        others = {name: count for name, count in record["fetches"].items() if name not in recorded}
        RECORD.write_text(json.dumps({"rustc": rustc, "fetches": others | spills}, indent=2) + "\n")
        print(f"recorded in {RECORD.relative_to(ROOT)}")
    elif fewer:
        print(f"notice: fewer than recorded in {', '.join(fewer)}; record the gain with --update")
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
