#!/usr/bin/env python3
"""Runs `gpu.py` from end to end on the stand-in for the driver, so that it works when its one run on a GPU comes.

What only a GPU host has is there as programs that take the same arguments and answer in the same form: ncu, compute-sanitizer,
nvidia-smi, a cmake that makes a llama-bench, and an interpreter that seems to have PyTorch and humming. Every step must end well,
and every part of the table must come out.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PACK = ROOT / "target" / "gpu"
PLACE = ROOT / "target" / "rehearsal"

NVIDIA_SMI = """
print("name, driver_version, memory.total, clocks.max.sm, clocks.max.mem")
print("A GPU, 580.1, 1 MiB, 1 MHz, 1 MHz")
"""

COMPUTE_SANITIZER = """
import os, sys
assert sys.argv[1] == "--tool" and sys.argv[3:5] == ["--error-exitcode", "9"], sys.argv
os.execv(sys.argv[5], sys.argv[5:])
"""

# Three kernels and a half, with the command that it measures really run.
NCU = """
import re, subprocess, sys
arguments = sys.argv[1:]
value = lambda name: arguments[arguments.index(name) + 1]
program = next(i for i, one in enumerate(arguments) if one.endswith("/rustai"))
subprocess.run(arguments[program:], check=True, stdout=subprocess.DEVNULL)
chosen = value("--kernel-name").removeprefix("regex:") if "--kernel-name" in arguments else ".*"
with open(value("--log-file"), "w") as log:
    print("==PROF== Connected to process 1", file=log)
    print('"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"', file=log)
    for number, (name, time) in enumerate([("gemv_q4_0_1", "1,500"), ("attend_64_4_f16", "700"), ("norm_rows", "90"), ("argmax", "9")]):
        if re.fullmatch(chosen.strip("^$"), name):
            for metric in value("--metrics").split(","):
                unit, figure = ("ns", time) if metric.startswith("gpu__time") else ("%", "42.5")
                print(f'"{number}","{name}(Args)","{metric}","{unit}","{figure}"', file=log)
"""

# `-B build` makes nothing; `--build build` makes both programs.
CMAKE = """
import pathlib, shutil, sys
if sys.argv[1] == "--build":
    folder = pathlib.Path(sys.argv[2], "bin")
    folder.mkdir(parents=True)
    for name in sys.argv[sys.argv.index("--target") + 1:]:
        shutil.copy(pathlib.Path(__file__).parent / "peer" / name, folder)
else:
    assert pathlib.Path(sys.argv[sys.argv.index("-S") + 1], "CMakeLists.txt").exists()
    assert any(one.startswith("-DCMAKE_CUDA_ARCHITECTURES=") for one in sys.argv)
"""

LLAMA_BENCH = """
import json, sys
value = lambda name: int(sys.argv[sys.argv.index(name) + 1])
rows = [{"n_prompt": value("-p"), "n_gen": 0, "avg_ts": 50.0}, {"n_prompt": 0, "n_gen": value("-n"), "avg_ts": 5.0}]
print(json.dumps(rows))
"""

LLAMA_BATCHED_BENCH = """
import json, sys
value = lambda name: sys.argv[sys.argv.index(name) + 1]
print("some words")
for count in value("-npl").split(","):
    print(json.dumps({"pl": int(count), "tg": int(value("-ntg")), "speed_tg": 10.0}))
"""

# Programs are compiled, but only answer; pip installs nothing; other scripts really run, with numpy.
PYTHON = """
import json, os, sys
if sys.argv[1] == "-c":
    compile(sys.argv[2], "program", "exec")
    row = {"n": 4096, "k": 14336, "m": 1, "int4_s": 1e-5, "bf16_s": 2e-5}
    print(json.dumps([row]))
elif sys.argv[1:4] == ["-m", "pip", "install"]:
    assert sys.argv[-1].endswith(".whl"), sys.argv
else:
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""

PROGRAMS = {
    "nvidia-smi": NVIDIA_SMI,
    "compute-sanitizer": COMPUTE_SANITIZER,
    "ncu": NCU,
    "cmake": CMAKE,
    "python": PYTHON,
    "peer/llama-bench": LLAMA_BENCH,
    "peer/llama-batched-bench": LLAMA_BATCHED_BENCH,
}

# Lines of the table, as patterns.
LINES = (
    r"probe +[1-9]\d* passed, 0 failed",
    r"models +2 passed, 0 failed",
    r"memcheck +1 passed, 0 failed",
    r"racecheck +1 passed, 0 failed",
    r"read memory .* GB/s",
    r"copy .* GB/s, read and written",
    r"mma bf16 .* T MAC/s",
    r"wgmma f16 .* T MAC/s",
    r"launch to launch .* us, overlapped .* us",
    r"gemv_q4_0_1 \d+x\d+ M=1 .* % of \S+",
    r"ncu gemv_q4_0_1 +65.2 % of the time, 1 launches",
    r" +sm__throughput +42.5",
    r"pytorch bf16 4096x14336 M=1 +20.0 us",
    r"humming int4 4096x14336 M=1 +10.0 us",
    r"tiny pp4 .* tokens/s, .* x llama.cpp \(50\)",
    r"tiny tg2 x 2 .* tokens/s",
    r"steps that did not end well: none",
)


def numpy_folder() -> Path:
    """Where numpy is, which writes the model."""
    folder = PLACE.parent / "rehearsal-numpy"
    if not (folder / "numpy").exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, "numpy"]
        subprocess.run(command, check=True)
    return folder


def main() -> None:
    subprocess.run([sys.executable, HERE / "gpu.py", "pack", "--dev", "--no-kernels", "--no-peers"], check=True)
    # A test builds the stand-in, if there is none of these sources yet.
    subprocess.run([PACK / "bin" / "probe", "--quiet"], cwd=HERE, check=True)
    shutil.rmtree(PLACE, ignore_errors=True)
    for name, text in PROGRAMS.items():
        program = PLACE / "bin" / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(f"#!{sys.executable}\n{text.lstrip()}")
        program.chmod(0o755)
    sources = PLACE / "CMakeLists.txt"
    sources.touch()
    with tarfile.open(PACK / "llama.tar.xz", "w:xz") as archive:
        archive.add(sources, sources.name)
    (PACK / "wheels").mkdir()
    (PACK / "wheels" / "humming.whl").touch()
    environment = dict(
        os.environ, PATH=f"{PLACE / 'bin'}:{os.environ['PATH']}", PYTHONPATH=str(numpy_folder()), PYTHONUNBUFFERED="1"
    )
    command = [sys.executable, HERE / "gpu.py", "run", "--standin", "--out", PLACE / "out", "--models", PLACE / "models"]
    done = subprocess.run(
        [*command, "--python", PLACE / "bin" / "python"], env=environment, stdout=subprocess.PIPE, text=True
    )
    print(done.stdout, end="")
    found = json.loads((PLACE / "out" / "gpu.json").read_text())
    problems = [f"{name}: {step['outcome']}" for name, step in found["steps"].items() if step["outcome"] != "ok"]
    lines = done.stdout.splitlines()
    problems += [f"no line {one}" for one in LINES if not any(re.match(one, text) for text in lines)]
    if done.returncode:
        problems.append(f"gpu.py run ended with {done.returncode}")
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
