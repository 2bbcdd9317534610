"""ik_llama.cpp: a fork of llama.cpp with matrix kernels of its own, through an existing build.

Weights are interleaved as they are loaded (`-rtr`), which is its fast way.
"""

from pathlib import Path

from .common import CONTEXT, run
from .llama_cpp import LlamaCpp

TOOLS = ["llama-bench", "llama-batched-bench", "llama-cli"]


class IkLlama(LlamaCpp):
    name = "ik_llama.cpp"
    bench_flags = ["-rtr", 1]

    def __init__(self, binaries):
        for tool in TOOLS:
            if not Path(binaries, tool).exists():
                raise RuntimeError(f"{binaries} has no {tool}; give the folder of a build of ik_llama.cpp with --ik-llama-bin")
        super().__init__(binaries, f"build in {binaries.parent.name}/{binaries.name}, -rtr")

    def batched(self, model, args):
        command = [self.binaries / "llama-batched-bench", "-m", model, "-t", args.threads, "-c", CONTEXT, "-rtr"]
        command += ["-npp", 1, "-ntg", args.gen, "-npl", args.sequences]
        out, _, _ = run(command, self.environment, errors=True)
        # | PP | TG | B | N_KV | T_PP s | S_PP t/s | T_TG s | S_TG t/s | T s | S t/s |
        cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("|")]
        return {int(row[2]): float(row[7]) for row in cells if len(row) == 10 and row[2].isdigit()}

    def first_token(self, model, prompt, args):
        command = [self.binaries / "llama-cli", "-m", model, "-t", args.threads, "-c", CONTEXT, "-n", 1, "-rtr"]
        return [*command, "--temp", 0, "--no-warmup", "-f", prompt]
