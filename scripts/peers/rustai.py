"""rustai itself, forced to one instruction set, and what packing weights costs it."""

import json
import os
import subprocess

from .common import CONTEXT, ROOT, run, say


def build():
    say("building rustai")
    subprocess.run(["cargo", "build", "--release", "--quiet", "-p", "rustai-cli"], check=True, cwd=ROOT)
    return ROOT / "target" / "release" / "rustai"


class Rustai:
    name = "rustai"

    def __init__(self, program, isa):
        self.program = program
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("RUSTAI_")}
        # The models are given by path, but a cache folder may be needed all the same.
        if "RUSTAI_CACHE" in os.environ:
            self.environment["RUSTAI_CACHE"] = os.environ["RUSTAI_CACHE"]
        if isa != "best":
            self.environment["RUSTAI_CPU"] = isa
        self.version = run([program, "--version"], self.environment)[0].strip()

    def isa(self):
        """The instruction set that really runs."""
        return json.loads(run([self.program, "info", "--json"], self.environment)[0])["isa"]

    def bench(self, model, args, prompt, sequences):
        command = [self.program, "bench", "-m", model, "-t", args.threads, "-p", prompt, "-n", args.gen, "-r", 1, "--json"]
        out, _, peak = run([*command, "-s", sequences], self.environment)
        return json.loads(out), peak

    def rates(self, model, args):
        rows, peak = self.bench(model, args, args.prompt, 1)
        return {"decode" if row["n_gen"] else "prefill": row["avg_ts"] for row in rows}, peak

    def batched(self, model, args):
        rows, _ = self.bench(model, args, 0, args.sequences)
        return {row["n_sequences"]: row["avg_ts"] for row in rows}

    def generate(self, model, prompt, args):
        command = [self.program, "generate", "--raw", "-m", model, "-t", args.threads, "-c", CONTEXT, "-n", 1]
        return [*command, "--temperature", 0, "-f", prompt]

    def first_token(self, model, prompt, args):
        return self.generate(model, prompt, args)

    def packing(self, model, prompt, args):
        """What packing costs: seconds to load with it, and those to the first token over those without packing.

        Weights are packed behind the first token, which takes longer for it: each step packs what it is about to read. Without
        packing, there would be the load as it is and the first token of packed weights, which reads as many bytes.
        """

        def timing(*more):
            out, _, _ = run([*self.generate(model, prompt, args), "--json", *more], self.environment)
            found = json.loads(out)["timing"]
            return found["load_s"], found["first_token_s"]

        (load, first), (load_packed, first_packed) = timing(), timing("--pack-first")
        return {"load_ms": load_packed * 1000, "packing": (load + first) / (load + first_packed)}
