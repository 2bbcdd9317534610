#!/usr/bin/env python3
"""Everything that only a GPU can tell, in one run of at most ten minutes on a host that needs no compiler and no network.

    kernels-cuda/gpu.py pack     on any host: builds the program, the tests and the kernels into target/gpu
    kernels-cuda/gpu.py run      on the GPU host, with target/gpu: checks, measures, compares; writes results there

`run` does, each step within its own time and whatever happened to the others: results of every kernel and of whole models
against the CPU; compute-sanitizer on a small model; the device's ceilings and every kind of product beside them; tokens per
second of a 1B and an 8B model with random weights; llama.cpp on the same files and PyTorch on the same shapes in turn, where
they are there; ncu on the hottest kernels. It prints a short table last, and writes `gpu.json`, `roofline.svg` and one log
per step to the folder that `--out` names (or $OUT).

    kernels-cuda/gpu.py run --standin    the same steps on the stand-in for the driver, with sizes that an emulator can bear

`pack --llama DIR` takes a build of llama.cpp for the GPU along; `run --llama DIR` uses one that is there.
"""

import argparse
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PACK = ROOT / "target" / "gpu"

# Test programs, and which of their tests look at results only: the others set faults that a real device does not have.
KERNEL_TESTS = {
    "matmul": (),
    "attention": ("--skip", "recording"),
    "rows": (),
    "sample": (),
}
MODEL_TESTS = (
    "logits_agree",
    "heads_of_other_lengths",
    "layers_on_both",
    "sequences_of_a_batch",
    "same_seed",
    "embeddings_and_logits",
)

MODELS = {"1b-q4_0": ("1b", "Q4_0"), "8b-q4_k_m": ("8b", "Q4_K_M")}


def fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(1)


def build(arguments: list[str]) -> list[dict]:
    """Runs cargo and returns what it says of each thing that it made."""
    command = ["cargo", *arguments, "--message-format=json-render-diagnostics"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        fail(f"`{' '.join(command)}` failed")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def pack(options: argparse.Namespace) -> None:
    if not options.no_kernels:
        architectures = [part for name in options.arch for part in ("--arch", name)]
        if subprocess.run([sys.executable, HERE / "check.py", "--build", *architectures]).returncode:
            fail("the kernels do not build")
    shutil.rmtree(PACK, ignore_errors=True)
    (PACK / "bin").mkdir(parents=True)
    profile = [] if options.dev else ["--release"]
    made = build(["build", "-p", "rustai-cli", *profile])
    made += build(["test", "--no-run", "-p", "rustai-kernels-cuda", "--tests", *profile])
    made += build(["test", "--no-run", "-p", "rustai-tests", "--test", "cuda", *profile])
    wanted = {"rustai", "cuda", *KERNEL_TESTS}
    for artifact in made:
        name = artifact.get("target", {}).get("name")
        if artifact.get("executable") and name in wanted:
            target = PACK / "bin" / name
            shutil.copy(artifact["executable"], target)
            subprocess.run(["strip", target], check=False)
            wanted.discard(name)
    if wanted:
        fail(f"cargo made no {', '.join(sorted(wanted))}")
    shutil.copy(ROOT / "scripts" / "make_synthetic.py", PACK)
    # The tokenizer is in the first megabytes of the default model.
    rustai = PACK / "bin" / "rustai"
    subprocess.run([rustai, "pull", "default"], check=True)
    info = json.loads(subprocess.run([rustai, "info", "--json"], check=True, stdout=subprocess.PIPE).stdout)
    donor = next((Path(info["cache"]) / "models").glob("SmolLM2-135M-Instruct.*.gguf"))
    with donor.open("rb") as source:
        (PACK / "donor.gguf").write_bytes(source.read(8 << 20))
    if options.llama:
        shutil.copytree(options.llama, PACK / "llama")
    size = sum(path.stat().st_size for path in PACK.rglob("*") if path.is_file())
    print(f"{PACK}: {size >> 20} MiB")


class Run:
    """Steps, their logs and what they found."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.out = options.out
        self.out.mkdir(parents=True, exist_ok=True)
        self.started = time.monotonic()
        self.found: dict = {"standin": options.standin, "steps": {}}
        self.environment = dict(os.environ)
        self.bin = PACK / "bin"
        self.models = Path(options.models)
        self.models.mkdir(parents=True, exist_ok=True)
        if options.standin:
            self.stand_in()
        else:
            self.environment["RUSTAI_TEST_DEVICE"] = "1"

    def stand_in(self) -> None:
        """Puts the stand-in where the loader finds a driver."""
        libraries = sorted((ROOT / "target").glob("**/tmp/standin-*.so"), key=lambda path: path.stat().st_mtime)
        if not libraries:
            fail("the stand-in is not built; run cargo test -p rustai-kernels-cuda once")
        folder = self.out / "standin"
        folder.mkdir(exist_ok=True)
        link = folder / "libcuda.so"
        link.unlink(missing_ok=True)
        link.symlink_to(libraries[-1])
        (folder / "all.sm_90a.cubin").write_bytes(b"// the stand-in has all kernels in it\0")
        self.environment["LD_LIBRARY_PATH"] = str(folder)
        self.environment["RUSTAI_CUDA_KERNELS"] = str(folder)

    def left(self) -> float:
        return self.options.seconds - (time.monotonic() - self.started)

    def step(self, name: str, command: list, seconds: float, cwd: Path = ROOT) -> str | None:
        """Runs a command within a time; returns its output, or None if it failed or there was no time. Its log has errors, too."""
        seconds = min(seconds, self.left() - 5)
        log = self.out / f"{name}.log"
        began = time.monotonic()
        if seconds < 2:
            outcome, text = "no time left", None
        else:
            text, outcome = self.finish([str(part) for part in command], seconds, cwd, log)
        took = time.monotonic() - began
        self.found["steps"][name] = {"outcome": outcome, "seconds": round(took, 1)}
        print(f"{name}: {outcome}, {took:.0f} s", flush=True)
        self.write()
        return text if outcome == "ok" else None

    def finish(self, command: list[str], seconds: float, cwd: Path, log: Path) -> tuple[str | None, str]:
        """Runs a command to its end, or ends it and what it has started; returns its output and how that went."""
        try:
            with log.with_suffix(".errors").open("w") as errors:
                process = subprocess.Popen(
                    command,
                    cwd=cwd,
                    env=self.environment,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                    errors="replace",
                    start_new_session=True,
                )
                try:
                    text, _ = process.communicate(timeout=seconds)
                    outcome = "ok" if process.returncode == 0 else f"failed ({process.returncode})"
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    text, _ = process.communicate()
                    outcome = f"stopped after {seconds:.0f} s"
        except FileNotFoundError:
            return None, "not there"
        log.write_text(text + log.with_suffix(".errors").read_text(errors="replace"))
        log.with_suffix(".errors").unlink()
        return text, outcome

    def json(self, name: str, text: str | None):
        """What a step printed, as JSON; a step that printed something else has failed."""
        if text is None:
            return None
        try:
            return json.loads(text)
        except ValueError as error:
            self.found["steps"][name]["outcome"] = f"failed: its output is no JSON ({error})"
            return None

    def write(self) -> None:
        (self.out / "gpu.json").write_text(json.dumps(self.found, indent=2) + "\n")

    # ---- steps

    def host(self) -> None:
        text = self.step("info", [self.bin / "rustai", "info", "--json"], 60)
        self.found["info"] = self.json("info", text)
        if not self.options.standin:
            query = "name,driver_version,memory.total,clocks.max.sm,clocks.max.mem"
            text = self.step("nvidia-smi", ["nvidia-smi", f"--query-gpu={query}", "--format=csv"], 20)
            self.found["nvidia_smi"] = text

    def kernels(self) -> None:
        passed = {}
        for name, arguments in KERNEL_TESTS.items():
            if self.options.standin and name == "attention":
                arguments = (*arguments, "--skip", "barriers")
            text = self.step(f"kernels-{name}", [self.bin / name, "--test-threads=1", *arguments], 90, HERE)
            passed[name] = verdict(text)
        names = MODEL_TESTS[:1] if self.options.standin else MODEL_TESTS
        passed["models"] = verdict(self.step("models", [self.bin / "cuda", "--test-threads=1", *names], 90, ROOT / "tests"))
        self.found["tests"] = passed

    def sanitizer(self) -> None:
        command = ["compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "9"]
        text = self.step("sanitizer", [*command, self.bin / "cuda", "sequences_of_a_batch"], 90, ROOT / "tests")
        self.found["sanitizer"] = verdict(text)

    def microbenchmarks(self) -> None:
        command = [self.bin / "rustai", "bench", "kernels", "--device", "cuda", "--json", "--svg", self.out / "roofline.svg"]
        if self.options.standin:
            command += ["--quick", "--type", "Q4_0", "--model", "135m", "--m", "1"]
        else:
            command += ["--type", "Q4_0,Q4_K,Q6_K,Q8_0,F16,BF16", "--model", "1b,8b", "--m", "1,2,4,8,16,32,64,512,2048,4096"]
        text = self.step("bench-kernels", command, 150)
        self.found["kernels"] = self.json("bench-kernels", text)

    def synthetic(self) -> dict[str, Path]:
        """Models with random weights; on the stand-in a tiny one, if any."""
        paths = {}
        if self.options.standin:
            if self.options.tiny:
                paths["tiny"] = Path(self.options.tiny)
            return paths
        for name, (shape, mix) in MODELS.items():
            path = self.models / f"{name}.gguf"
            maker = [sys.executable, PACK / "make_synthetic.py", "--shape", shape, "--type", mix]
            if path.exists() or self.step(f"make-{name}", [*maker, "--donor", PACK / "donor.gguf", "--out", path], 120):
                paths[name] = path
        return paths

    def end_to_end(self, paths: dict[str, Path]) -> None:
        rows = []
        for name, path in paths.items():
            if name.startswith("1b"):
                self.environment["RUSTAI_TEST_MODEL"] = str(path)
                arguments = ["--ignored", "--nocapture", "the_named_model"]
                text = self.step(f"compare-{name}", [self.bin / "cuda", *arguments], 90, ROOT / "tests")
                self.found.setdefault("tests", {})[f"{name} beside the CPU"] = verdict(text)
            prompt, generate, sequences = ("4", "2", "1") if self.options.standin else ("512,2048", "128", "1,8,64")
            llama = self.llama()
            for turn in range(1 if self.options.standin else 2):
                shared = ["-m", path, "-p", prompt, "-n", generate, "-r", "1" if self.options.standin else "3"]
                ours = [self.bin / "rustai", "bench", *shared, "--sequences", sequences, "-b", "2048", "--device", "cuda"]
                step = f"bench-{name}-{turn}"
                for row in self.json(step, self.step(step, [*ours, "--json"], 120)) or []:
                    rows.append({"engine": "rustai", "model": name, "test": row["test"], "tokens_per_s": row["avg_ts"]})
                if llama:
                    theirs = [llama / "llama-bench", *shared, "-b", "2048", "-ub", "2048", "-fa", "1", "-ngl", "99"]
                    step = f"llama-{name}-{turn}"
                    for row in self.json(step, self.step(step, [*theirs, "-o", "json"], 120)) or []:
                        test = f"pp{row['n_prompt']}" if row["n_prompt"] else f"tg{row['n_gen']}"
                        rows.append({"engine": "llama.cpp", "model": name, "test": test, "tokens_per_s": row["avg_ts"]})
        self.found["end_to_end"] = rows

    def llama(self) -> Path | None:
        for folder in (self.options.llama, PACK / "llama"):
            if folder and (Path(folder) / "llama-bench").exists():
                return Path(folder)
        return None

    def pytorch(self) -> None:
        if not self.options.standin:
            text = self.step("pytorch", [sys.executable, "-c", PYTORCH], 90)
            self.found["pytorch"] = self.json("pytorch", text)

    def ncu(self, paths: dict[str, Path]) -> None:
        if self.options.standin or not paths:
            return
        path = next(iter(paths.values()))
        metrics = "dram__throughput.avg.pct_of_peak_sustained_elapsed,sm__throughput.avg.pct_of_peak_sustained_elapsed"
        profile = ["ncu", "--clock-control", "none", "--metrics", metrics, "--kernel-name", "regex:gemv|gemm|attend"]
        bench = [self.bin / "rustai", "bench", "-m", path, "-p", "512", "-n", "4", "-r", "1", "--no-warmup", "--device", "cuda"]
        self.found["ncu"] = self.step("ncu", [*profile, "--launch-count", "60", *bench], 90)

    def failed(self) -> bool:
        """Whether a step that must pass did not, or a test failed or none ran. Other programs may be absent."""
        optional = ("sanitizer", "pytorch", "ncu", "llama", "nvidia-smi")
        for name, step in self.found["steps"].items():
            absent = step["outcome"] in ("not there", "no time left") and name.startswith(optional)
            if step["outcome"] != "ok" and not absent:
                return True
        return not all(re.fullmatch(r"[1-9]\d* passed, 0 failed", text) for text in self.found["tests"].values())

    def table(self) -> None:
        print()
        for name, outcome in self.found.get("tests", {}).items():
            print(f"{name:30} {outcome}")
        report = self.found.get("kernels")
        if report:
            for roof in report["roofs"]:
                for read in roof["reads"]:
                    print(f"read {read['level']:25} {read['all_threads'] / 1e9:10.0f} GB/s")
                for name in ("integer", "float"):
                    print(f"{name:30} {roof[name]['macs_per_second'] / 1e12:10.1f} T MAC/s")
            for row in report["points"]:
                if row["weights_in"] == "memory":
                    what = f"{row['type']} {row['n']} x {row['k']}, M = {row['m']}"
                    rates = f"{row['bytes_per_s'] / 1e9:6.0f} GB/s {row['macs_per_s'] / 1e12:7.2f} T MAC/s"
                    print(f"{what:30} {rates} {row['percent_of_roof']:4.0f} % of {row['bound']}")
        medians: dict[tuple, dict[str, float]] = {}
        for row in self.found.get("end_to_end", []):
            key = (row["model"], row["test"])
            rates = [
                other["tokens_per_s"]
                for other in self.found["end_to_end"]
                if (other["model"], other["test"], other["engine"]) == (*key, row["engine"])
            ]
            medians.setdefault(key, {})[row["engine"]] = statistics.median(rates)
        for (model, test), engines in medians.items():
            ours, theirs = engines.get("rustai"), engines.get("llama.cpp")
            ratio = f"{ours / theirs:6.2f} x llama.cpp ({theirs:.0f})" if ours and theirs else ""
            print(f"{model + ' ' + test:30} {ours or 0:10.1f} tokens/s {ratio}")
        failed = [name for name, step in self.found["steps"].items() if step["outcome"] != "ok"]
        print(f"steps that did not end well: {', '.join(failed) or 'none'}; {self.out / 'gpu.json'}")


def verdict(text: str | None) -> str:
    if text is None:
        return "FAILED"
    found = re.findall(r"(\d+) passed; (\d+) failed", text)
    return ", ".join(f"{passed} passed, {failed} failed" for passed, failed in found) or "no test ran"


PYTORCH = """
import json, torch
def median(run, repeats=30):
    for _ in range(5): run(0)
    times = []
    for index in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record(); run(index); end.record(); torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return sorted(times)[len(times) // 2]
rows = []
for n, k in ((4096, 14336), (14336, 4096)):
    copies = max(1, int(3 * 60e6 / (n * k * 2)) + 1)
    half = [torch.randn(n, k, device="cuda", dtype=torch.bfloat16) for _ in range(copies)]
    quarter = []
    for _ in range(4 * copies):
        packed = torch.randint(0, 255, (n, k // 2), device="cuda", dtype=torch.uint8)
        scales = torch.randn(k // 32, n, 2, device="cuda", dtype=torch.bfloat16)
        quarter.append((torch._convert_weight_to_int4pack(packed, 8), scales))
    for m in (1, 8, 16, 64, 512, 2048, 4096):
        x = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
        row = {"n": n, "k": k, "m": m}
        row["bf16_s"] = median(lambda i: torch.nn.functional.linear(x, half[i % copies]))
        row["int4_s"] = median(lambda i: torch._weight_int4pack_mm(x, quarter[i % len(quarter)][0], 32, quarter[i % len(quarter)][1]))
        rows.append(row)
print(json.dumps(rows))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack", help="build what a GPU host needs into target/gpu")
    packing.add_argument("--arch", action="append", default=[], help="kernels for this architecture only; 90a for Hopper")
    packing.add_argument("--dev", action="store_true", help="the development profile, for trying the script")
    packing.add_argument("--no-kernels", action="store_true", help="take the kernels of prebuilt/ as they are")
    packing.add_argument("--llama", type=Path, help="a folder with llama-bench for the GPU host")
    running = commands.add_parser("run", help="check and measure on this host's GPU")
    running.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ROOT / "target" / "gpu-results")))
    running.add_argument("--models", default="/tmp/rustai-gpu-models", help="where models with random weights are written")
    running.add_argument("--seconds", type=float, default=570, help="time for all steps")
    running.add_argument("--llama", type=Path, help="a folder with llama-bench")
    running.add_argument("--standin", action="store_true", help="on the stand-in for the driver")
    running.add_argument("--tiny", help="with --standin: a small model to run from end to end")
    options = parser.parse_args()
    if options.command == "pack":
        pack(options)
        return
    if not (PACK / "bin" / "rustai").exists():
        fail("target/gpu is not there; run kernels-cuda/gpu.py pack on a host that builds")
    run = Run(options)
    run.host()
    run.kernels()
    run.sanitizer()
    run.microbenchmarks()
    paths = run.synthetic()
    run.end_to_end(paths)
    run.pytorch()
    run.ncu(paths)
    run.write()
    run.table()
    sys.exit(run.failed())


if __name__ == "__main__":
    main()
