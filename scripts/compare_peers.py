#!/usr/bin/env python3
"""Measures rustai beside other engines on this machine: same files, same threads, one run after the other in turn.

For each model file and each instruction set of ours, the engines take turns (A B C A B C ...), so that a busy neighbour hits
all. Reported are medians with the smallest and largest value, and ratios of the medians (ours over theirs):

  decode        tokens per second of generation (tg)
  decode xN     tokens per second of N sequences that generate together
  prefill       tokens per second of prompt processing (pp)
  peak memory   largest resident set of the whole benchmark process
  peak / data   the same over what must be in memory: the file and an f16 key/value cache of the longer test
  first token   whole process on a warm file: start, load, a short prompt, one token, end
  load          rustai alone: opening, mapping and packing the file (--pack-first)
  packing       rustai alone: load to first token as it is by default, over the same if nothing had to be packed

rustai is forced to an instruction set with RUSTAI_CPU; the others always run as they were built (for this processor). The
engines are

  llama.cpp     built from the sources of a pip package, or an existing build
  ik_llama.cpp  an existing native build with llama-bench, llama-batched-bench and llama-cli (--ik-llama-bin)
  openvino      openvino-genai from pip, which converts GGUF files as it loads them
  candle        a small program around candle-transformers, built with cargo
  mistral.rs    mistralrs from pip

What an engine cannot run is named below the table. OpenVINO and mistral.rs run in a Python process, whose start and memory
count; OpenVINO and candle take token ids, mistral.rs takes text of about as many tokens.

    scripts/compare_peers.py                                  llama.cpp; builds everything it needs below target/peers
    scripts/compare_peers.py --llama-bin DIR --files smollm2  with an existing build, one file only
    scripts/compare_peers.py --engines llama.cpp,candle       two peers

Needs Python 3.9, a C++ compiler and the pip client. This is a measurement, not a test; run it on a quiet machine.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from pathlib import Path

from peers import candle, files, ik_llama, llama_cpp, mistral_rs, openvino, rustai
from peers.common import CONTEXT, PEERS, ROOT, amx_is_broken, run, say

ENGINES = ["llama.cpp", "ik_llama.cpp", "openvino", "candle", "mistral.rs"]
FILES = ["smollm2", "1b-q4_0", "1b-q4_k_m", "1b-q8_0"]
PROMPT = (
    "The lighthouse keeper climbed the narrow stairs each evening, carrying oil for the lamp and a small book in which "
    "he wrote down the ships that passed, their"
)


def make_peer(name, args):
    if name == "llama.cpp":
        if args.llama_bin:
            return llama_cpp.LlamaCpp(args.llama_bin.resolve(), f"given build in {args.llama_bin.resolve().parent.name}")
        binaries = llama_cpp.build(args.llama_version)
        return llama_cpp.LlamaCpp(binaries.resolve(), f"{llama_cpp.PACKAGE} {args.llama_version}")
    if name == "ik_llama.cpp":
        if not args.ik_llama_bin:
            raise SystemExit("error: ik_llama.cpp needs --ik-llama-bin, the folder of the programs of an existing build")
        return ik_llama.IkLlama(args.ik_llama_bin.resolve())
    if name == "openvino":
        return openvino.make()
    if name == "candle":
        return candle.make(args.threads)
    if name == "mistral.rs":
        return mistral_rs.make(args.threads)
    raise SystemExit(f"error: no engine is called {name!r}; there are {', '.join(ENGINES)}")


# ---- measuring


def measure(engine, model, prompt, args):
    """One turn of one engine."""
    found = {}
    if args.prompt + args.gen > 0:
        rates, peak = engine.rates(model, args)
        data = model.stat().st_size + files.cache_bytes(args.rustai, model, max(args.prompt, args.gen))
        found.update(rates, peak_mib=peak / 2**20, peak_ratio=peak / data)
    if args.gen > 0 and args.sequences:
        for count, rate in engine.batched(model, args).items():
            found[f"decode_x{count}"] = rate
    if not args.no_first_token:
        _, wall, _ = run(engine.first_token(model, prompt, args), engine.environment)
        found["first_token_ms"] = wall * 1000
        if engine.name == "rustai":
            found.update(engine.packing(model, prompt, args))
    return found


def compare(model, engines, prompt, args):
    """All turns for one file: lists of values by engine and quantity, and what engines could not run it and why."""
    values, refused = {engine.name: {} for engine in engines}, {}
    # The first turn brings the file into the page cache and finds out early if an engine cannot run it.
    for turn in range(-1, args.rounds):
        for engine in engines:
            if engine.name in refused:
                continue
            try:
                if turn < 0:
                    run(engine.first_token(model, prompt, args), engine.environment)
                    continue
                for quantity, value in measure(engine, model, prompt, args).items():
                    values[engine.name].setdefault(quantity, []).append(value)
            except RuntimeError as error:
                if engine.name == "rustai":
                    raise
                say(f"  {engine.name} cannot run it: {error}")
                refused[engine.name], values[engine.name] = str(error), {}
        say(f"  round {turn + 1} of {args.rounds}" if turn >= 0 else "  warm")
    return values, refused


# ---- reporting

QUANTITIES = [
    ("decode", "decode tok/s", 1),
    *((f"decode_x{count}", f"decode x{count} tok/s", 1) for count in range(2, 257)),
    ("prefill", "prefill tok/s", 1),
    ("peak_mib", "peak MiB", 0),
    ("peak_ratio", "peak / data", 2),
    ("first_token_ms", "first token ms", 0),
    ("load_ms", "load ms", 0),
    ("packing", "packing", 2),
]


def shown(values, digits):
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def markdown(results, peers):
    lines = ["| file | kernels | quantity | rustai | " + "".join(f"{peer} | ratio | " for peer in peers).rstrip()]
    lines.append("| --- | --- | --- | ---: |" + " ---: | ---: |" * len(peers))
    for result in results:
        ours = result["values"]["rustai"]
        for key, title, digits in QUANTITIES:
            if key not in ours:
                continue
            cells = [result["file"], result["isa"], title, shown(ours[key], digits)]
            for peer in peers:
                theirs = result["values"][peer].get(key)
                ratio = theirs and statistics.median(ours[key]) / statistics.median(theirs)
                cells += [shown(theirs, digits), f"{ratio:.2f}"] if theirs else ["-", "-"]
            lines.append("| " + " | ".join(cells) + " |")
    for result in results:
        for peer, why in result["refused"].items():
            last = [line for line in why.splitlines() if line.strip()][-1]
            lines += ["", f"{peer} does not run {result['file']}: {last.strip()}"]
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


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", default="llama.cpp", help=f"any of {', '.join(ENGINES)}, or all")
    parser.add_argument("--files", default=",".join(FILES), help=f"any of {', '.join(files.NAMES)}, or paths, or all")
    parser.add_argument("--isa", default="best,avx2", help="our instruction sets: best, avx512, avx2, reference")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prefill row; 0 leaves it out")
    parser.add_argument("--gen", type=int, default=128, help="tokens of the decode row; 0 leaves it out")
    parser.add_argument("--sequences", default="8,16", help="numbers of sequences that decode together; empty leaves it out")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-first-token", action="store_true")
    parser.add_argument("--llama-bin", type=Path, help="folder of an existing build's programs")
    parser.add_argument("--llama-version", default=llama_cpp.VERSION)
    parser.add_argument("--ik-llama-bin", type=Path, help="folder of the programs of an existing build of ik_llama.cpp")
    parser.add_argument("--rustai", type=Path, help="an existing program; otherwise it is built")
    parser.add_argument("--smollm2", type=Path, help="the default model's file; otherwise `rustai pull` finds it")
    parser.add_argument("--models", type=Path, default=PEERS / "models", help="folder of the synthetic files")
    parser.add_argument("--out", type=Path, default=PEERS / "results.json", help="where all values are kept")
    args = parser.parse_args()
    args.engines = ENGINES if args.engines == "all" else args.engines.split(",")
    args.files = files.NAMES if args.files == "all" else args.files.split(",")
    args.rustai = (args.rustai or rustai.build()).resolve()
    args.models = args.models.resolve()
    args.smollm2 = args.smollm2 and args.smollm2.resolve()
    return args


def main():
    PEERS.mkdir(parents=True, exist_ok=True)
    args = arguments()
    peers = [make_peer(name, args) for name in args.engines]
    paths = files.model_files(args.files, args.models, args.rustai, args.smollm2)
    prompt = PEERS / "prompt.txt"
    prompt.write_text(PROMPT)
    # Two names of one instruction set are measured once.
    ours = {side.isa(): side for side in (rustai.Rustai(args.rustai, isa) for isa in args.isa.split(","))}

    facts = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": args.threads,
        "rounds": args.rounds,
        "prompt": args.prompt,
        "gen": args.gen,
        "context_of_first_token": CONTEXT,
        "rustai": next(iter(ours.values())).version,
        "commit": first_line(["git", "describe", "--always", "--dirty"], cwd=ROOT),
        "amx_left_out": args.llama_bin is None and amx_is_broken(),
        "peers": {peer.name: peer.version for peer in peers},
        "load_before": load(),
    }
    results = []
    for name, path in paths.items():
        for isa, side in ours.items():
            say(f"{name}, {isa}")
            values, refused = compare(path, [side, *peers], prompt, args)
            results.append(
                {"file": name, "bytes": path.stat().st_size, "isa": isa, "values": values, "refused": refused}
            )
            # Kept after each file, so that an interrupted run is not lost.
            facts["load_after"] = load()
            args.out.write_text(json.dumps({"facts": facts, "results": results}, indent=1) + "\n")
    print(markdown(results, [peer.name for peer in peers]))
    print()
    print(
        f"{facts['date']}, {facts['processor']}, {facts['cores']} cores, {args.threads} threads; medians of {args.rounds} "
        f"(smallest-largest); pp{args.prompt}, tg{args.gen}, f16 key/value cache; {facts['rustai']} ({facts['commit']}), "
        + ", ".join(f"{name}: {version}" for name, version in facts["peers"].items())
        + f"; load average {facts['load_before']} before, {facts['load_after']} after."
    )


if __name__ == "__main__":
    main()
