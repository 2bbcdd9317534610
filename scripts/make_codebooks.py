#!/usr/bin/env python3
"""Writes `kernels-cpu/src/formats/codebook/tables.rs`: the codebooks of the IQ1, IQ2 and IQ3 types.

    pip install numpy gguf==0.19.0
    python make_codebooks.py && cargo fmt --all

The codebooks are data of the GGUF format, found by search when ggml's authors designed the types; no rule gives them. They
are taken from the `gguf` package, whose `quants.py` has them from ggml. An entry is one 16-bit number: eight levels of two
bits, or four levels of four bits, the first level lowest.
"""

import pathlib

import numpy as np
from gguf import quants

FILE = pathlib.Path(__file__).parent.parent / "kernels-cpu/src/formats/codebook/tables.rs"

TABLES = [
    ("IQ1", quants.IQ1_S, "IQ1_S and IQ1_M: eight levels of -1, 0, 1."),
    ("IQ2_XXS", quants.IQ2_XXS, "IQ2_XXS: eight levels of 8, 25, 43."),
    ("IQ2_XS", quants.IQ2_XS, "IQ2_XS: eight levels of 8, 25, 43."),
    ("IQ2_S", quants.IQ2_S, "IQ2_S: eight levels of 8, 25, 43."),
    ("IQ3_XXS", quants.IQ3_XXS, "IQ3_XXS: four levels of 4, 12, 20, 28, 36, 44, 52, 62."),
    ("IQ3_S", quants.IQ3_S, "IQ3_S: four levels of 1, 3, 5, ... 15."),
]


def entries(quant):
    quant.init_grid()
    rows = quant.grid.reshape(quant.grid_shape)
    bits = 16 // rows.shape[1]
    level_of = {value: level for level, value in enumerate(quant.grid_map)}
    return [sum(level_of[int(value)] << bits * i for i, value in enumerate(row)) for row in rows.astype(np.int32)]


def main():
    lines = ["//! The entries of the codebooks. Written by `scripts/make_codebooks.py` from the `gguf` package's `quants.py`."]
    for name, quant, comment in TABLES:
        numbers = entries(quant)
        lines += ["", f"/// {comment}", f"pub(in super::super) static {name}: [u16; {len(numbers)}] = ["]
        lines += ["    " + " ".join(f"0x{n:04x}," for n in numbers[i : i + 14]) for i in range(0, len(numbers), 14)]
        lines += ["];"]
    FILE.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
