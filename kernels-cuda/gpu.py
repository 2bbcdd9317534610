#!/usr/bin/env python3
"""Everything that only a GPU can tell, in one run of at most ten minutes on a host that needs no network.

    kernels-cuda/gpu.py pack     on any host: builds the program, the tests and the kernels into target/gpu, with llama.cpp's sources
    kernels-cuda/gpu.py run      on the GPU host, with target/gpu: checks, measures, compares; writes results there

`run` does, each step within its own time and whatever happened to the others: single instructions against the manual, so that
the emulator is known to be right; results of every kernel and of whole models against the CPU; the device's ceilings and every
kind of product beside them; tokens per second of a 1B and an 8B model with random weights; compute-sanitizer (memcheck, racecheck)
on a small model; ncu, first for the time of all kernels, then for more about the top three; products of PyTorch and of humming;
llama.cpp, built there meanwhile, on the same files in turn. What matters most comes first. It prints a short table last, and
writes `gpu.json`, `roofline.svg` and one log per step to the folder that `--out` names (or $OUT).

    kernels-cuda/gpu.py run --standin    the same steps on the stand-in for the driver, with sizes that an emulator can bear

rehearse.py packs and runs that way with programs that only seem to be the GPU host's, so that CI sees each step work.
"""

import argparse
import csv
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

import gpu_peers

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PACK = ROOT / "target" / "gpu"

# What a call to a GPU host may carry, less what the checkout itself takes.
MOST_BYTES = 56 << 20

# Test programs, and which of their tests look at results only: the others set faults that a real device does not have. `pack`
# refuses a name that no test has.
PROBE = "probe"
KERNEL_TESTS = ("matmul", "hopper", "attention", "rows", "sample")
MODEL_TESTS = (
    "logits::logits_agree_with_the_cpu_for_every_common_type_and_batch",
    "logits::long_prompts_agree_with_the_cpu_beside_other_sequences",
    "logits::heads_of_other_lengths_agree_with_the_cpu",
    "logits::layers_on_both_devices_compute_what_one_does",
    "logits::sequences_of_a_batch_do_not_disturb_each_other",
    "logits::long_sequences_and_changing_batches_agree_with_the_cpu",
    "engine::the_same_seed_gives_the_same_answer",
    "engine::embeddings_and_logits_are_written_where_they_are_wanted",
)
# The emulator takes long for the others, and CI's other tests have them.
STANDIN_MODEL_TESTS = (
    "logits::sequences_of_a_batch_do_not_disturb_each_other",
    "engine::the_same_seed_gives_the_same_answer",
)
STANDIN_KERNEL_TESTS = ("rows", "sample")
SANITIZER_TEST = "logits::sequences_of_a_batch_do_not_disturb_each_other"
NAMED_MODEL_TEST = "logits::the_named_model_computes_what_the_cpu_does"

MODELS = {"1b-q4_0": ("1b", "Q4_0"), "8b-q4_k_m": ("8b", "Q4_K_M")}
SEQUENCES = (1, 8, 64)

# Steps that need a program which may be absent, by how their names begin: that it is not there is no failure.
OPTIONAL = ("nvidia-smi", "memcheck", "racecheck", "ncu", "pytorch", "humming", "llama")

# Seconds that are kept for the last steps, beside llama.cpp, if that can be had.
KEPT_FOR_PEERS = 150

NCU_METRICS = (
    "gpu__time_duration.sum",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__inst_executed_pipe_tensor.avg.pct_of_peak_sustained_active",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    "smsp__issue_active.avg.pct_of_peak_sustained_active",
)


def fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(1)


# ---- packing


def build(arguments: list[str]) -> list[dict]:
    """Runs cargo and returns what it says of each thing that it made."""
    command = ["cargo", *arguments, "--message-format=json-render-diagnostics"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        fail(f"`{' '.join(command)}` failed")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def check_names() -> None:
    """Every test that `run` names is there, and every program has tests."""

    def tests_of(program: str) -> set[str]:
        listed = subprocess.run([PACK / "bin" / program, "--list"], stdout=subprocess.PIPE, text=True, check=True)
        return set(re.findall(r"^(\S+): test$", listed.stdout, re.MULTILINE))

    models = tests_of("cuda")
    for name in {*MODEL_TESTS, *STANDIN_MODEL_TESTS, SANITIZER_TEST, NAMED_MODEL_TEST} - models:
        fail(f"no test of tests/tests/cuda is named {name}")
    for program in (PROBE, *KERNEL_TESTS):
        if not tests_of(program):
            fail(f"{program} has no tests")


def pack(options: argparse.Namespace) -> None:
    if not options.no_kernels:
        architectures = [part for name in options.arch for part in ("--arch", name)]
        if subprocess.run([sys.executable, HERE / "check.py", "--build", *architectures]).returncode:
            fail("the kernels do not build")
    shutil.rmtree(PACK, ignore_errors=True)
    (PACK / "bin").mkdir(parents=True)
    tests = ["cuda", PROBE, *KERNEL_TESTS]
    named = [part for name in tests for part in ("--test", name)]
    if options.dev:
        # As the workspace's tests are built, so that nothing is built twice where they have run; the program is made for its tests.
        made = build(["test", "--no-run", "--workspace", "--test", "cli", *named])
    else:
        # The program as users have it.
        made = build(["build", "-p", "rustai-cli", "--release"])
        made += build(["test", "--no-run", "--workspace", "--release", *named])
    wanted = {"rustai", *tests}
    for artifact in made:
        name = artifact.get("target", {}).get("name")
        if artifact.get("executable") and name in wanted:
            target = PACK / "bin" / name
            shutil.copy(artifact["executable"], target)
            subprocess.run(["strip", target], check=False)
            wanted.discard(name)
    if wanted:
        fail(f"cargo made no {', '.join(sorted(wanted))}")
    check_names()
    shutil.copy(ROOT / "scripts" / "make_synthetic.py", PACK)
    # The tokenizer is in the first megabytes of the default model.
    rustai = PACK / "bin" / "rustai"
    subprocess.run([rustai, "pull", "default"], check=True)
    info = json.loads(subprocess.run([rustai, "info", "--json"], check=True, stdout=subprocess.PIPE).stdout)
    donor = next((Path(info["cache"]) / "models").glob("SmolLM2-135M-Instruct.*.gguf"))
    with donor.open("rb") as source:
        (PACK / "donor.gguf").write_bytes(source.read(8 << 20))
    if not options.no_peers:
        for name, work in (("llama.tar.xz", gpu_peers.pack_llama), ("wheels", gpu_peers.pack_humming)):
            try:
                work(PACK / name)
            except (OSError, subprocess.CalledProcessError) as error:
                print(f"warning: {name} is left out: {error}", file=sys.stderr)
    size = sum(path.stat().st_size for path in PACK.rglob("*") if path.is_file())
    print(f"{PACK}: {size >> 20} MiB")
    if size > MOST_BYTES and not options.dev:
        fail("that is more than a call to the GPU host carries; pack kernels of one architecture with --arch 90a")


# ---- running


class Run:
    """Steps, their logs and what they found."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.out = options.out.resolve()
        self.out.mkdir(parents=True, exist_ok=True)
        self.started = time.monotonic()
        self.found: dict = {"standin": options.standin, "steps": {}, "tests": {}}
        # Tests take the device that is there, which may be the stand-in.
        self.environment = dict(os.environ, RUSTAI_TEST_DEVICE="1")
        self.bin = PACK / "bin"
        self.models = Path(options.models)
        self.models.mkdir(parents=True, exist_ok=True)
        self.kept = 0.0
        self.build: subprocess.Popen | None = None
        if options.standin:
            self.stand_in()

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
        seconds = min(seconds, self.left() - self.kept - 5)
        began = time.monotonic()
        if seconds < 2:
            outcome, text = "no time left", None
        else:
            text, outcome = self.finish([str(part) for part in command], seconds, cwd, self.out / f"{name}.log")
        self.tell(name, outcome, time.monotonic() - began)
        return text if outcome == "ok" else None

    def tell(self, name: str, outcome: str, seconds: float) -> None:
        self.found["steps"][name] = {"outcome": outcome, "seconds": round(seconds, 1)}
        print(f"{name}: {outcome}, {seconds:.0f} s", flush=True)
        self.write()

    def finish(self, command: list[str], seconds: float, cwd: Path, log: Path) -> tuple[str | None, str]:
        """Runs a command to its end, or ends it and what it has started; returns its output and how that went."""
        try:
            with log.with_suffix(".errors").open("w") as errors:
                process = subprocess.Popen(
                    command,
                    cwd=cwd,
                    env=self.environment,
                    stdin=subprocess.DEVNULL,
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
        except OSError as error:
            log.with_suffix(".errors").unlink(missing_ok=True)
            return None, "not there" if isinstance(error, FileNotFoundError) else f"failed: {error}"
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

    def guarded(self, step) -> None:
        """Runs steps that belong together; what goes wrong between them is a failure of theirs, and the others go on."""
        try:
            step()
        except Exception as error:  # noqa: BLE001
            self.tell(step.__name__, f"failed: {type(error).__name__}: {error}", 0)

    # ---- steps, in their order

    def begin_llama(self) -> None:
        """Starts to build llama.cpp beside what comes first, which the device's clock times. Four cores are left to that."""
        archive = PACK / "llama.tar.xz"
        if not archive.exists():
            return
        jobs = max(1, (os.cpu_count() or 1) - 4)
        commands = gpu_peers.llama_build(archive, self.models / "llama", "90a-real", jobs)
        with (self.out / "llama-build.log").open("w") as log:
            self.build = subprocess.Popen(
                ["nice", "-n", "19", "sh", "-c", commands], stdout=log, stderr=log, start_new_session=True
            )
        self.build_started = time.monotonic()
        self.kept = min(KEPT_FOR_PEERS, self.left() / 3)

    def host(self) -> None:
        text = self.step("info", [self.bin / "rustai", "info", "--json"], 60)
        self.found["info"] = self.json("info", text)
        query = "name,driver_version,memory.total,clocks.max.sm,clocks.max.mem"
        text = self.step("nvidia-smi", ["nvidia-smi", f"--query-gpu={query}", "--format=csv"], 20)
        self.found["nvidia_smi"] = text

    def test(self, name: str, program: str, arguments: tuple[str, ...], seconds: float, cwd: Path = HERE) -> None:
        text = self.step(name, [self.bin / program, "--test-threads=1", *arguments], seconds, cwd)
        self.found["tests"][name] = verdict(text)

    def instructions(self) -> None:
        self.test("probe", PROBE, (), 60)

    def kernels(self) -> None:
        for name in STANDIN_KERNEL_TESTS if self.options.standin else KERNEL_TESTS:
            self.test(f"kernels-{name}", name, (), 90)
        names = STANDIN_MODEL_TESTS if self.options.standin else MODEL_TESTS
        self.test("models", "cuda", ("--exact", *names), 90, ROOT / "tests")

    def microbenchmarks(self) -> None:
        command = [self.bin / "rustai", "bench", "kernels", "--device", "cuda", "--json", "--svg", self.out / "roofline.svg"]
        if self.options.standin:
            command += ["--quick", "--type", "Q4_0", "--model", "135m", "--m", "1"]
        else:
            command += ["--type", "Q4_0,Q4_K,Q6_K,Q8_0,F16,BF16", "--model", "1b,8b", "--m", "1,2,4,8,16,32,64,512,2048,4096"]
        text = self.step("bench-kernels", command, 120)
        self.found["kernels"] = self.json("bench-kernels", text)

    def synthetic(self) -> None:
        """Models with random weights; on the stand-in a tiny one, if the interpreter has numpy."""
        self.paths: dict[str, Path] = {}
        for name, (shape, mix) in ({"tiny": ("tiny", "Q4_0")} if self.options.standin else MODELS).items():
            path = self.models / f"{name}.gguf"
            maker = [self.options.python, PACK / "make_synthetic.py", "--shape", shape, "--type", mix]
            if path.exists() or self.step(f"make-{name}", [*maker, "--donor", PACK / "donor.gguf", "--out", path], 90):
                self.paths[name] = path

    def bench(self, name: str, turn: int) -> None:
        """One model here, from end to end."""
        standin = self.options.standin
        prompt, generate = ("4", "2") if standin else ("512,2048", "128")
        sequences = (1, 2) if standin else SEQUENCES
        command = [self.bin / "rustai", "bench", "-m", self.paths[name], "-p", prompt, "-n", generate, "-b", "2048"]
        command += ["-r", "1" if standin else "3", "--sequences", ",".join(map(str, sequences)), "--device", "cuda", "--json"]
        step = f"bench-{name}-{turn}"
        for row in self.json(step, self.step(step, command, 90)) or []:
            self.row("rustai", name, row["n_prompt"], row["n_gen"], row["n_sequences"], row["avg_ts"])

    def row(self, engine: str, model: str, prompt: int, generate: int, sequences: int, rate: float) -> None:
        test = f"pp{prompt}" if prompt else f"tg{generate}"
        test += f" x {sequences}" if sequences > 1 else ""
        rows = self.found.setdefault("end_to_end", [])
        rows.append({"engine": engine, "model": model, "test": test, "tokens_per_s": rate})

    def end_to_end(self) -> None:
        for name, path in self.paths.items():
            self.bench(name, 0)
            if name.startswith(("1b", "tiny")):
                self.environment["RUSTAI_TEST_MODEL"] = str(path)
                if not self.options.standin:
                    arguments = ("--ignored", "--exact", "--nocapture", NAMED_MODEL_TEST)
                    self.test(f"{name}-beside-the-cpu", "cuda", arguments, 60, ROOT / "tests")

    def sanitizers(self) -> None:
        for tool in ("memcheck", "racecheck"):
            command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", self.bin / "cuda", "--exact"]
            text = self.step(tool, [*command, SANITIZER_TEST], 60, ROOT / "tests")
            if self.found["steps"][tool]["outcome"] not in ("not there", "no time left"):
                self.found["tests"][tool] = verdict(text)

    def ncu(self) -> None:
        """How long each kernel takes of a prompt and some tokens, then more of those that take most."""
        if not self.paths:
            return
        path = list(self.paths.values())[-1]
        sizes = ("4", "1") if self.options.standin else ("512", "4")
        bench = [self.bin / "rustai", "bench", "-m", path, "-p", sizes[0], "-n", sizes[1], "-r", "1", "--no-warmup"]
        bench += ["--device", "cuda", "--json"]
        profile = ["ncu", "--clock-control", "none", "--csv"]

        def measure(number: int, extra: list, metrics: tuple[str, ...]) -> list[dict]:
            log = self.out / f"ncu-{number}.csv"
            command = [*profile, "--log-file", log, "--metrics", ",".join(metrics), *extra, *bench]
            if self.step(f"ncu-{number}", command, 60) is None:
                return []
            return ncu_rows(log.read_text(errors="replace"))

        rows = measure(1, ["--launch-count", "2000"], NCU_METRICS[:1])
        times: dict[str, list[float]] = {}
        for row in rows:
            times.setdefault(row["kernel"], []).append(row["value"])
        total = sum(map(sum, times.values()))
        by_time = sorted(times, key=lambda name: -sum(times[name]))
        self.found["ncu"] = {
            "model": path.stem,
            "kernels": [
                {"kernel": name, "launches": len(times[name]), "ns": sum(times[name]), "share": sum(times[name]) / total}
                for name in by_time
            ],
        }
        if not by_time:
            return
        names = "|".join(map(re.escape, by_time[:3]))
        chosen = ["--kernel-name", f"regex:^({names})$", "--launch-count", "24"]
        values: dict[tuple[str, str], list[float]] = {}
        for row in measure(2, chosen, NCU_METRICS):
            values.setdefault((row["kernel"], row["metric"]), []).append(row["value"])
        for entry in self.found["ncu"]["kernels"][:3]:
            entry["medians"] = {
                metric: statistics.median(found) for (name, metric), found in values.items() if name == entry["kernel"]
            }

    def products_of_peers(self) -> None:
        text = self.step("pytorch", [self.options.python, "-c", gpu_peers.PYTORCH], 60)
        self.found["pytorch"] = self.json("pytorch", text)
        wheels = sorted((PACK / "wheels").glob("*.whl"))
        if not wheels:
            return
        site = self.models / "site"
        command = [self.options.python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--upgrade"]
        if self.step("humming-install", [*command, "--target", site, *wheels], 30) is None:
            return
        self.environment["PYTHONPATH"] = str(site)
        text = self.step("humming", [self.options.python, "-c", gpu_peers.HUMMING_PROGRAM], 60)
        del self.environment["PYTHONPATH"]
        self.found["humming"] = self.json("humming", text and text.strip().splitlines()[-1])

    def llama(self) -> None:
        """Waits for llama.cpp to be built, and takes turns with it."""
        self.kept = 0.0
        if self.build is None:
            return
        # Its turns take a minute and a half.
        seconds = max(1, self.left() - 90) if not self.options.standin else 60
        try:
            outcome = "ok" if self.build.wait(seconds) == 0 else f"failed ({self.build.returncode})"
        except subprocess.TimeoutExpired:
            os.killpg(self.build.pid, signal.SIGKILL)
            self.build.wait()
            outcome = "stopped: there is no time left for it"
        self.tell("llama-build", outcome, time.monotonic() - self.build_started)
        programs = self.models / "llama" / "build" / "bin"
        if outcome != "ok":
            return
        for name, path in self.paths.items():
            standin = self.options.standin
            for turn in (1, 2):
                if turn == 2:
                    self.bench(name, 1)
                prompt, generate, repeats = ("4", "2", "1") if standin else ("512,2048", "128", "3")
                command = [programs / "llama-bench", "-m", path, "-p", prompt, "-n", generate, "-r", repeats, "-o", "json"]
                command += ["-b", "2048", "-ub", "2048", "-fa", "1", "-ngl", "99"]
                step = f"llama-{name}-{turn}"
                for row in self.json(step, self.step(step, command, 60)) or []:
                    self.row("llama.cpp", name, row["n_prompt"], row["n_gen"], 1, row["avg_ts"])
            several = [str(count) for count in SEQUENCES[1:]]
            command = [programs / "llama-batched-bench", "-m", path, "-c", str(SEQUENCES[-1] * 160), "-npp", "1"]
            command += ["-ntg", "128", "-npl", ",".join(several), "-fa", "1", "-ngl", "99", "--output-format", "jsonl"]
            text = self.step(f"llama-batched-{name}", command, 60)
            for row in map(json.loads, filter(lambda line: line.startswith("{"), (text or "").splitlines())):
                self.row("llama.cpp", name, 0, row["tg"], row["pl"], row["speed_tg"])

    def all(self) -> None:
        for step in (
            self.begin_llama,
            self.host,
            self.instructions,
            self.kernels,
            self.microbenchmarks,
            self.synthetic,
            self.end_to_end,
            self.sanitizers,
            self.ncu,
            self.products_of_peers,
            self.llama,
        ):
            self.guarded(step)
        if self.build and self.build.poll() is None:
            os.killpg(self.build.pid, signal.SIGKILL)
        self.found["seconds"] = round(time.monotonic() - self.started, 1)
        self.write()

    def failed(self) -> bool:
        """Whether a step that must pass did not, or a test failed or none ran. Other programs may be absent."""
        for name, step in self.found["steps"].items():
            absent = step["outcome"] in ("not there", "no time left") and name.startswith(OPTIONAL)
            if step["outcome"] != "ok" and not absent:
                return True
        return not all(re.fullmatch(r"[1-9]\d* passed, 0 failed", text) for text in self.found["tests"].values())

    # ---- the table

    def table(self) -> None:
        print()
        for name, outcome in self.found["tests"].items():
            line(name, outcome)
        self.table_of_kernels(self.found.get("kernels"))
        self.table_of_ncu(self.found.get("ncu"))
        self.table_of_products()
        self.table_of_models()
        failed = [f"{name} ({step['outcome']})" for name, step in self.found["steps"].items() if step["outcome"] != "ok"]
        print(f"steps that did not end well: {', '.join(failed) or 'none'}")
        print(f"{self.found['seconds']:.0f} s; {self.out / 'gpu.json'}")

    def table_of_kernels(self, report: dict | None) -> None:
        if not report:
            return
        for roof in report["roofs"]:
            for read in roof["reads"]:
                line(f"read {read['level']}", f"{read['all_threads'] / 1e9:8.0f} GB/s")
            if roof["copy"]:
                line("copy", f"{roof['copy']['bytes_per_second'] / 1e9:8.0f} GB/s, read and written")
            for peak in roof["peaks"]:
                line(peak["name"], f"{peak['macs_per_second'] / 1e12:8.1f} T MAC/s")
            if roof["launches"]:
                alone, overlapped = (roof["launches"][name] / 1e3 for name in ("alone_ns", "overlapped_ns"))
                line("launch to launch", f"{alone:8.2f} us, overlapped {overlapped:.2f} us")
        for row in report["points"]:
            if row["weights_in"] == "memory":
                rates = f"{row['bytes_per_s'] / 1e9:8.0f} GB/s {row['macs_per_s'] / 1e12:7.2f} T MAC/s"
                what = f"{row['kernel']} {row['n']}x{row['k']} M={row['m']}"
                line(what, f"{rates} {row['percent_of_roof']:4.0f} % of {row['bound']}")

    def table_of_ncu(self, found: dict | None) -> None:
        for entry in (found or {}).get("kernels", [])[:8]:
            line(f"ncu {entry['kernel']}", f"{100 * entry['share']:8.1f} % of the time, {entry['launches']} launches")
            for metric, value in entry.get("medians", {}).items():
                line(f"    {metric.split('.')[0]}", f"{value:8.1f}")

    def table_of_products(self) -> None:
        """Products of PyTorch and humming beside those here that read as many bits."""
        ours = {
            (row["type"], row["n"], row["k"], row["m"]): row["time_ns"] / 1e3
            for row in (self.found.get("kernels") or {"points": []})["points"]
            if row["weights_in"] == "memory"
        }
        for peer, column, dtype in (
            ("pytorch", "int4_s", "Q4_0"),
            ("humming", "int4_s", "Q4_0"),
            ("pytorch", "bf16_s", "BF16"),
        ):
            for row in self.found.get(peer) or []:
                here = ours.get((dtype, row["n"], row["k"], row["m"]))
                theirs = row[column] * 1e6
                ratio = f"; {dtype} here {here:.1f} us, {theirs / here:.2f} x" if here else ""
                line(f"{peer} {column[:4]} {row['n']}x{row['k']} M={row['m']}", f"{theirs:8.1f} us{ratio}")

    def table_of_models(self) -> None:
        rates: dict[tuple, dict[str, list[float]]] = {}
        for row in self.found.get("end_to_end", []):
            rates.setdefault((row["model"], row["test"]), {}).setdefault(row["engine"], []).append(row["tokens_per_s"])
        for (model, test), engines in rates.items():
            medians = {engine: statistics.median(values) for engine, values in engines.items()}
            ours, theirs = medians.get("rustai"), medians.get("llama.cpp")
            ratio = f", {ours / theirs:.2f} x llama.cpp ({theirs:.0f})" if ours and theirs else ""
            line(f"{model} {test}", f"{ours or 0:8.1f} tokens/s{ratio}")


def line(name: str, words: str) -> None:
    print(f"{name:44} {words}")


def verdict(text: str | None) -> str:
    if text is None:
        return "FAILED"
    found = re.findall(r"(\d+) passed; (\d+) failed", text)
    return ", ".join(f"{passed} passed, {failed} failed" for passed, failed in found) or "no test ran"


def ncu_rows(text: str) -> list[dict]:
    """Kernel, metric and value of each line of ncu's CSV, times in nanoseconds. Other lines are ncu's words."""
    units = {"ns": 1, "nsecond": 1, "us": 1e3, "usecond": 1e3, "ms": 1e6, "msecond": 1e6, "s": 1e9, "second": 1e9}
    rows = []
    for row in csv.DictReader(one for one in text.splitlines() if one.startswith('"')):
        value = row["Metric Value"].replace(",", "")
        if re.fullmatch(r"[\d.]+", value):
            # The name may come with parameters.
            kernel = row["Kernel Name"].split("(")[0]
            scale = units.get(row["Metric Unit"], 1)
            rows.append({"kernel": kernel, "metric": row["Metric Name"], "value": float(value) * scale})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack", help="build what a GPU host needs into target/gpu")
    packing.add_argument("--arch", action="append", default=[], help="kernels for this architecture only; 90a for Hopper")
    packing.add_argument("--dev", action="store_true", help="the development profile, for trying the script")
    packing.add_argument("--no-kernels", action="store_true", help="take the kernels of prebuilt/ as they are")
    packing.add_argument("--no-peers", action="store_true", help="leave out llama.cpp and humming")
    running = commands.add_parser("run", help="check and measure on this host's GPU")
    running.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ROOT / "target" / "gpu-results")))
    running.add_argument("--models", default="/tmp/rustai-gpu", help="where models with random weights and llama.cpp go")
    running.add_argument("--seconds", type=float, default=570, help="time for all steps")
    running.add_argument("--python", default=sys.executable, help="the interpreter with numpy and PyTorch")
    running.add_argument("--standin", action="store_true", help="on the stand-in for the driver")
    options = parser.parse_args()
    if options.command == "pack":
        pack(options)
        return
    if not (PACK / "bin" / "rustai").exists():
        fail("target/gpu is not there; run kernels-cuda/gpu.py pack on a host that builds")
    run = Run(options)
    run.all()
    run.table()
    sys.exit(run.failed())


if __name__ == "__main__":
    main()
