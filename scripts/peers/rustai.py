"""rustai itself, forced to one instruction set, and what packing weights costs it."""

import json
import os
import subprocess
import threading
import time

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
        """What packing costs: seconds to load, and those to the first token over those without packing.

        Without packing, a load would map the file, and the first token would read each of its pages once. So the same
        first token counts, with one read of the file from the page cache by as many threads in place of the load.
        """
        out, _, _ = run([*self.generate(model, prompt, args), "--json"], self.environment)
        timing = json.loads(out)["timing"]
        unpacked = read_once(model, args.threads)
        first = timing["first_token_s"]
        return {"load_ms": timing["load_s"] * 1000, "packing": (timing["load_s"] + first) / (unpacked + first)}


def read_once(path, threads):
    """Seconds that threads need to read a file, each a part of it, into a buffer that stays in the L2 cache."""
    size, piece = path.stat().st_size, 1 << 18

    def read(begin, end):
        buffer = bytearray(piece)
        with open(path, "rb", buffering=0) as file:
            file.seek(begin)
            while begin < end:
                got = file.readinto(buffer)
                if not got:
                    return
                begin += got

    bounds = [size * part // threads for part in range(threads + 1)]
    readers = [threading.Thread(target=read, args=part) for part in zip(bounds, bounds[1:])]
    started = time.perf_counter()
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    return time.perf_counter() - started
