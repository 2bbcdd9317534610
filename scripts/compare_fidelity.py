#!/usr/bin/env python3
"""Measures how near rustai's and llama.cpp's logits are to exact arithmetic, for every weight type, on the same files.

For each model and type, llama-quantize writes a file; the truth is our reference on that file (weights dequantized to f32,
activations f32). Of some windows of wikitext-2's test split, at every position, are reported

  KL        mean KL divergence of the next token's distribution from the truth, in nats
  error     relative error of the logits: the L2 norm of the difference over that of the truth, of all positions together

for our fast kernels and for llama.cpp as it was built (with its defaults: f16 key/value cache, weights repacked). The models are

  smollm2   SmolLM2-135M, brought to F32 and quantized anew with llama-quantize's usual mix. Its rows of 576 are no multiple of
            256, so types with such blocks fall back to others in most matrices, as they do for real users.
  narrow    random weights, rows of 512 and 1536, every matrix of the one type
  wide      random weights, rows of 1024 and 2816, likewise

or the path of a file, which is taken as it is. The distributions of random weights are nearly uniform, and their KL small; there, the error tells more.

    scripts/compare_fidelity.py                        all of them; builds llama.cpp below target/peers if it is not there
    scripts/compare_fidelity.py --models wide --types Q4_0,Q4_K

Needs Python 3.9, a C compiler and the pip client. Times do not matter here, so the machine need not be quiet.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path

from peers import files, llama_cpp, rustai
from peers.common import PEERS, PROGRAMS, ROOT, run, say

# Type to llama-quantize's name of a file of it.
TYPES = {
    "Q4_0": "Q4_0",
    "Q4_1": "Q4_1",
    "Q5_0": "Q5_0",
    "Q5_1": "Q5_1",
    "Q8_0": "Q8_0",
    "IQ4_NL": "IQ4_NL",
    "IQ4_XS": "IQ4_XS",
    "MXFP4": "MXFP4_MOE",
    "Q2_K": "Q2_K",
    "Q3_K": "Q3_K_M",
    "Q4_K": "Q4_K_M",
    "Q5_K": "Q5_K_M",
    "Q6_K": "Q6_K",
    "F16": "F16",
    "BF16": "BF16",
}
# The usual mix of this name has the type in experts only.
MXFP4 = ["--tensor-type", "attn=mxfp4", "--tensor-type", "ffn=mxfp4"]
MODELS = ["smollm2", "narrow", "wide"]
TOOLS = ["llama-quantize"]


def sources_of(binaries):
    """The source folder that a build was configured from."""
    cache = Path(binaries).parent / "CMakeCache.txt"
    found = re.search(r"CMAKE_HOME_DIRECTORY:INTERNAL=(.*)", cache.read_text())
    return Path(found.group(1))


def logits_program(binaries):
    """Compiles the program that writes llama.cpp's logits, against the headers and libraries of a build."""
    program, sources = PEERS / "llama_logits", sources_of(binaries)
    includes = [f"-I{sources / folder}" for folder in ("include", "ggml/include")]
    command = ["cc", "-O2", *includes, PROGRAMS / "llama_logits.c", "-o", program, f"-L{binaries}", "-lllama"]
    # Libraries that libllama itself needs are found in the same folder.
    subprocess.run([*command, f"-Wl,-rpath,{binaries}", f"-Wl,-rpath-link,{binaries}"], check=True)
    return program


def fidelity_program():
    subprocess.run(
        ["cargo", "build", "--release", "--quiet", "-p", "rustai-tests", "--example", "fidelity"], check=True, cwd=ROOT
    )
    return ROOT / "target" / "release" / "examples" / "fidelity"


class Fidelity:
    def __init__(self, args):
        self.args = args
        self.binaries = (args.llama_bin or llama_cpp.build(tools=llama_cpp.TOOLS + TOOLS)).resolve()
        self.environment = llama_cpp.environment_of(self.binaries)
        self.logits, self.fidelity = logits_program(self.binaries), fidelity_program()
        self.folder = PEERS / "fidelity"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.smollm2 = (args.smollm2 and args.smollm2.resolve()) or files.pulled(args.rustai)

    def quantize(self, source, target, *flags):
        """Quantizes a file; the last of the flags is the type."""
        command = [self.binaries / "llama-quantize", "--allow-requantize", *flags[:-1], source, target, flags[-1]]
        run([*command, self.args.threads], self.environment)
        return target

    def original(self, model):
        """The file that all types of a model are quantized from."""
        if model == "smollm2":
            path = self.folder / "smollm2.gguf"
            return path if path.exists() else self.quantize(self.smollm2, path, "F32")
        return files.synthetic(self.folder / f"{model}.gguf", model, "F16", self.smollm2)

    def quantized(self, model, type_):
        path = self.folder / f"{model}-{type_.lower()}.gguf"
        if model != "smollm2":
            flags = ["--pure"]
        elif type_ == "MXFP4":
            flags = MXFP4
        else:
            flags = []
        return self.quantize(self.original(model), path, *flags, TYPES[type_])

    def distance(self, path):
        """How far both engines are from the truth on a file."""
        tokens, theirs = self.folder / "tokens", self.folder / "logits"
        args = self.args
        run([self.fidelity, "tokens", path, args.window * args.windows, tokens], None)
        run([self.logits, path, tokens, args.window, args.threads, theirs], self.environment)
        found = json.loads(run([self.fidelity, "compare", path, tokens, args.window, theirs], None)[0])
        theirs.unlink()
        return found

    def compare(self, model, type_):
        path = self.quantized(model, type_) if model in MODELS else Path(model).resolve()
        found = self.distance(path)
        inspected = run([self.args.rustai, "inspect", path, "--json", "--no-tensors"], None)[0]
        found["types"] = {row["type"]: row["tensors"] for row in json.loads(inspected)["types"]}
        if model in MODELS:
            path.unlink()
        return found


def markdown(results):
    isas = list(dict.fromkeys(row["kernels"] for result in results for row in result["rows"] if row["kernels"] != "other"))
    lines = ["| model | type | tensors | llama.cpp KL | error |" + "".join(f" {isa} KL | error | KL ratio |" for isa in isas)]
    lines.append("| --- | --- | --- | ---: | ---: |" + " ---: | ---: | ---: |" * len(isas))
    for result in results:
        rows = {row["kernels"]: row for row in result["rows"]}
        shown = lambda row: [f"{row['mean_kl']:.2e}", f"{row['relative_error']:.2e}"]
        tensors = ", ".join(f"{count} {name}" for name, count in result["types"].items())
        cells = [result["model"], result["type"], tensors, *shown(rows["other"])]
        for isa in isas:
            cells += [*shown(rows[isa]), f"{rows[isa]['mean_kl'] / rows['other']['mean_kl']:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def add_arguments(parser, windows, out):
    """What a comparison with llama.cpp's logits needs to know."""
    parser.add_argument("--window", type=int, default=256, help="tokens of a window")
    parser.add_argument("--windows", type=int, default=windows)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--llama-bin", type=Path, help="folder of an existing build's programs and libraries")
    parser.add_argument("--smollm2", type=Path, help="the default model's file; otherwise `rustai pull` finds it")
    parser.add_argument("--out", type=Path, default=PEERS / out, help="where all values are kept")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS), help=f"any of {', '.join(MODELS)}, or paths")
    parser.add_argument("--types", default=",".join(TYPES), help=f"any of {', '.join(TYPES)}")
    add_arguments(parser, 2, "fidelity.json")
    args = parser.parse_args()
    PEERS.mkdir(parents=True, exist_ok=True)
    args.rustai = rustai.build()
    fidelity, results = Fidelity(args), []
    for model in args.models.split(","):
        for type_ in args.types.split(",") if model in MODELS else ["as it is"]:
            started = time.perf_counter()
            results.append({"model": Path(model).stem, "type": type_, **fidelity.compare(model, type_)})
            say(f"{model} {type_}: {time.perf_counter() - started:.0f} s")
            args.out.write_text(json.dumps(results, indent=1) + "\n")
    print(markdown(results))
    print(f"\n{args.windows} windows of {args.window} tokens.")


if __name__ == "__main__":
    sys.exit(main())
