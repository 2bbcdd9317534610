#!/usr/bin/env python3
"""Compares the files that `rustai quantize` and llama-quantize make of one model, for every mix of types.

From SmolLM2-135M brought to F32, each makes a file; `rustai perplexity` scores both on the head of wikitext-2's test split. Reported are

  size        of our file over that of llama.cpp's
  perplexity  of each file, and ours over theirs
  read back   mean KL divergence, in nats, of llama.cpp's distributions from the truth on our file: that it reads our file as
              we do. The truth is our reference: weights dequantized to f32, activations f32

With `--imatrix`, `rustai imatrix` gathers an importance matrix of the end of that text, which both quantize with.

    scripts/compare_quantize.py                     all mixes; builds llama.cpp below target/peers if it is not there
    scripts/compare_quantize.py --mixes Q4_K_M,Q2_K --imatrix

Exits with 1 if a perplexity of ours is more than one per cent above theirs. Needs Python 3.9, a C compiler and the pip client. Times do
not matter here, so the machine need not be quiet.
"""

import argparse
import json
import sys

from compare_fidelity import MXFP4, Fidelity, add_arguments
from peers import rustai
from peers.common import PEERS, run, say

MIXES = (
    "Q8_0 Q6_K Q5_K_M Q5_K_S Q5_1 Q5_0 Q4_K_M Q4_K_S Q4_1 Q4_0 IQ4_NL IQ4_XS MXFP4 Q3_K_L Q3_K_M Q3_K_S Q2_K Q2_K_S F16 BF16"
).split()
# Mixes that are made with an importance matrix only, and one that llama-quantize spells as options.
NEEDS_IMATRIX = {"Q2_K_S"}
LLAMA_FLAGS = {"MXFP4": (MXFP4, "MXFP4_MOE")}
CEILING = 1.01


class Comparison:
    def __init__(self, args):
        self.args = args
        self.peer = Fidelity(args)
        self.folder = self.peer.folder = PEERS / "quantize"
        self.folder.mkdir(exist_ok=True)
        self.original = self.peer.original("smollm2")
        self.text = self.folder / "text"
        run([self.peer.fidelity, "text", self.text], None)
        self.imatrix = []
        if args.imatrix:
            matrix = self.folder / "imatrix.gguf"
            say("gathering an importance matrix")
            # Another part of the text than the one that is scored.
            rest = self.folder / "rest"
            rest.write_text(self.text.read_text()[-200_000:])
            run([args.rustai, "imatrix", "-m", self.original, "-f", rest, "-o", matrix, "--chunks", "32"], None)
            self.imatrix = ["--imatrix", matrix]

    def made(self, mix):
        """Our file and theirs."""
        ours, theirs = (self.folder / f"{mix.lower()}-{who}.gguf" for who in ("ours", "theirs"))
        run([self.args.rustai, "quantize", *self.imatrix, self.original, ours, mix], None)
        flags, name = LLAMA_FLAGS.get(mix, ([], mix))
        self.peer.quantize(self.original, theirs, *self.imatrix, *flags, name)
        return ours, theirs

    def perplexity(self, path):
        command = [self.args.rustai, "perplexity", "-m", path, "-f", self.text, "--chunks", self.args.chunks, "--json"]
        return json.loads(run(command, None)[0])["perplexity"]

    def read_back(self, path):
        found = self.peer.distance(path)
        return next(row["mean_kl"] for row in found["rows"] if row["kernels"] == "other")

    def compare(self, mix):
        ours, theirs = self.made(mix)
        row = {
            "mix": mix,
            "size": ours.stat().st_size / theirs.stat().st_size,
            "ours": self.perplexity(ours),
            "theirs": self.perplexity(theirs),
            "read_back": self.read_back(ours),
        }
        ours.unlink()
        theirs.unlink()
        return row | {"ratio": row["ours"] / row["theirs"]}


def markdown(rows):
    lines = ["| mix | size | rustai | llama-quantize | ratio | read back |", "| --- | ---: | ---: | ---: | ---: | ---: |"]
    for row in rows:
        lines.append(
            f"| {row['mix']} | {row['size']:.3f} | {row['ours']:.3f} | {row['theirs']:.3f} | {row['ratio']:.4f} "
            f"| {row['read_back']:.4f} |"
        )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mixes", default=",".join(MIXES), help=f"any of {', '.join(MIXES)}")
    parser.add_argument("--imatrix", action="store_true", help="quantize with an importance matrix")
    parser.add_argument("--chunks", type=int, default=20, help="chunks of 512 tokens that are scored")
    add_arguments(parser, 1, "quantize.json")
    args = parser.parse_args()
    PEERS.mkdir(parents=True, exist_ok=True)
    args.rustai = rustai.build()
    comparison, rows = Comparison(args), []
    for mix in args.mixes.split(","):
        if mix in NEEDS_IMATRIX and not args.imatrix:
            continue
        rows.append(comparison.compare(mix))
        say(f"{mix}: {rows[-1]['ours']:.3f} for {rows[-1]['theirs']:.3f}")
        args.out.write_text(json.dumps(rows, indent=1) + "\n")
    print(markdown(rows))
    worse = [row["mix"] for row in rows if row["ratio"] > CEILING]
    if worse:
        print(f"\nmore than {CEILING} of llama-quantize's perplexity: {', '.join(worse)}")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
