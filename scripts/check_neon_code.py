#!/usr/bin/env python3
"""Looks at the machine code of the AArch64 integer kernels: whether each level uses its instructions, calls nothing, and
keeps what its inner loops work with in registers. Prints the instructions of the inner loops per block of 32 columns.

    scripts/check_neon_code.py target/aarch64-unknown-linux-gnu/release/deps/librustai_kernels_cpu-*.rlib
"""

import collections
import re
import subprocess
import sys

# Instructions that a level must have, and those it must not have.
LEVELS = {
    "neon": ({"smull", "smlal", "sadalp|saddlp"}, {"sdot", "smmla"}),
    "dotprod": ({"sdot"}, {"smmla", "smull", "smlal"}),
    "i8mm": ({"sdot", "smmla"}, {"smull", "smlal"}),
}
TYPES = "q4_0 q4_1 q5_0 q5_1 q8_0 q2_k q3_k q4_k q5_k q6_k iq4_nl iq4_xs mxfp4".split()
# Those whose figures are printed.
SHOWN = ["q4_0", "q8_0", "q4_k"]
# Instructions that make scales: in loops that read packed weights, and not in loops over panels, where they are ready.
SCALES = {"fcvtl", "bsl", "bit", "bif"}
DOTS = {"sdot", "smmla", "smull", "smull2", "smlal", "smlal2"}
# Share of an inner loop's instructions that may move vectors between registers and the stack: with three tokens, sums,
# scales and minima of sixteen rows take more than 32 registers.
STACK_SHARE = 0.25

Function = collections.namedtuple("Function", "code calls")
Instruction = collections.namedtuple("Instruction", "address name operands")


def functions(path):
    """The kernels in the file by level and type."""
    command = ["aarch64-linux-gnu-objdump", "-dr", "--no-show-raw-insn", "-C", path]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found, current = {}, None
    for line in listing.splitlines():
        if head := re.match(r"[0-9a-f]+ <(.*)>:$", line):
            name = re.fullmatch(r".*::aarch64::int::(\w+)::(\w+?)(?:::h[0-9a-f]{16})?", head[1])
            current = found.setdefault(name.groups(), Function([], set())) if name and name[2] in TYPES else None
        elif current is None:
            continue
        elif call := re.match(r"\s+[0-9a-f]+: R_AARCH64_CALL26\s+(.*)", line):
            current.calls.add(call[1])
        elif code := re.match(r"\s+([0-9a-f]+):\s+(\S+)\s*(.*)$", line):
            current.code.append(Instruction(int(code[1], 16), code[2], code[3]))
    return found


def inner_loops(code):
    """Bodies of the loops that hold no other loop and multiply."""
    index = {instruction.address: i for i, instruction in enumerate(code)}
    loops = set()
    for end, instruction in enumerate(code):
        target = re.search(r"\b([0-9a-f]+) <", instruction.operands)
        if re.match(r"(b(\.\w+)?|t?cbn?z|tbn?z)$", instruction.name) and target:
            start = index.get(int(target[1], 16))
            if start is not None and start <= end:
                loops.add((start, end))
    for start, end in sorted(loops):
        inside = any(start <= s and e <= end and (s, e) != (start, end) for s, e in loops)
        body = code[start : end + 1]
        if not inside and any(instruction.name in DOTS for instruction in body):
            yield body


def count(body, names):
    return sum(instruction.name in names for instruction in body)


def stack(body):
    """Vector registers that the loop moves to or from the stack."""
    return sum("[sp" in operands and operands.startswith("q") for _, _, operands in body)


def main():
    found = functions(sys.argv[1])
    wrong = []
    print(f"{'kernel':16} {'one token x 16 rows':>22} {'4 tokens x 8 rows':>22}   (instructions, products, stack)")
    for level, (needed, refused) in LEVELS.items():
        for name in TYPES:
            kernel = f"{level} {name}"
            if (level, name) not in found:
                wrong.append(f"{kernel}: no such function")
                continue
            code, calls = found[level, name]
            names = {instruction.name.rstrip("2") for instruction in code}
            for choice in needed:
                if not names & set(choice.split("|")):
                    wrong.append(f"{kernel}: no {choice}")
            wrong += [f"{kernel}: {instruction}" for instruction in refused & names]
            wrong += [f"{kernel}: calls {call}" for call in calls if not re.match(r"mem(set|cpy)\b", call)]
            loops = list(inner_loops(code))
            for body in loops:
                share = stack(body) / len(body)
                if share > STACK_SHARE:
                    wrong.append(f"{kernel}: {share:.0%} of the loop at {body[0].address:x} goes to the stack")
            direct = [body for body in loops if count(body, SCALES)]
            panel = [body for body in loops if not count(body, SCALES)]
            if not direct or not panel:
                wrong.append(f"{kernel}: found {len(direct)} loops over packed weights and {len(panel)} over panels")
            elif name in SHOWN:
                bodies = min(direct, key=lambda body: count(body, DOTS)), max(panel, key=lambda body: count(body, DOTS))
                cells = (f"{len(body)}, {count(body, DOTS)}, {stack(body)}" for body in bodies)
                print("{:16} {:>22} {:>22}".format(kernel, *cells))
    for line in wrong:
        print(f"error: {line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
