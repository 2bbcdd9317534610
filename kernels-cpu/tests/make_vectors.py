#!/usr/bin/env python3
"""Writes the test vectors in `vectors/` with the numpy reference of the `gguf` package.

    pip install numpy gguf==0.19.0 libggml-python==0.20.2.post1
    python make_vectors.py [SmolLM2-135M-Instruct.Q4_1.gguf]

The output depends on nothing but the fixed seed. Each file is a list of little-endian sections, as `formats.rs` reads them:

    <type>.dequantize   u32 elements, blocks as in a GGUF file, expected f32 values
    <type>.quantize     u32 elements, f32 values, expected blocks

Types that search for their scales need not give the bytes of another program. For them `quantize.samples` holds rows of f16
values, and `quantize.errors` the relative error with which ggml (through `libggml-python`) quantizes them. Those two are
made only if the model is named, which the last rows are taken from.

Blocks have random quants and group scales. Their f16 scales go through zeros, the smallest denormals, the largest finite
values, both signs and ordinary magnitudes; infinite and NaN scales are left to the Rust tests, since the pattern of a
NaN that comes out of arithmetic is up to the processor.
"""

import ctypes
import pathlib
import struct
import sys

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as T
from gguf import quants

FOLDER = pathlib.Path(__file__).parent / "vectors"
RNG = np.random.default_rng(20240613)

# Zeros, denormals (first, some, last), first normal, ordinary, large, largest; of both signs.
MAGNITUDES = [0x0000, 0x0001, 0x0155, 0x03FF, 0x0400, 0x1234, 0x2E66, 0x3C00, 0x5640, 0x7BFF]
SCALES = [sign | bits for bits in MAGNITUDES for sign in (0x0000, 0x8000)]

# Where the f16 scales of a block are.
SCALE_OFFSETS = {
    T.Q4_0: [0],
    T.Q4_1: [0, 2],
    T.Q5_0: [0],
    T.Q5_1: [0, 2],
    T.Q8_0: [0],
    T.Q2_K: [80, 82],
    T.Q3_K: [108],
    T.Q4_K: [0, 2],
    T.Q5_K: [0, 2],
    T.Q6_K: [208],
}

# The same for types that came later. Each has a generator of its own, so that one more type changes no other's vector.
LATER_OFFSETS = {
    T.IQ2_XXS: [0],
    T.IQ2_XS: [0],
    T.IQ3_XXS: [0],
    T.IQ1_S: [0],
    T.IQ4_NL: [0],
    T.IQ3_S: [0],
    T.IQ2_S: [0],
    T.IQ4_XS: [0],
    T.IQ1_M: [],  # in parts, see later_blocks
    T.TQ1_0: [52],
    T.TQ2_0: [64],
    T.MXFP4: [],
    T.NVFP4: [],
    T.Q1_0: [0],
}

# Blocks that take the indices of a type once through its codebook.
CODEBOOK_BLOCKS = {T.IQ2_XXS: 8, T.IQ2_XS: 16, T.IQ3_XXS: 4, T.IQ1_S: 64, T.IQ3_S: 8, T.IQ2_S: 32}

# Exponents of MXFP4: denormal and other small ones, ordinary, those that overflow.
EXPONENTS = [0, 1, 2, 3, 60, 100, 117, 118, 119, 120, 121, 122, 123, 124, 126, 127, 128, 130, 200, 251, 252, 253, 254, 255]


def random_blocks(dtype, count, offsets, rng=RNG):
    blocks = rng.integers(0, 256, (count, GGML_QUANT_SIZES[dtype][1]), dtype=np.uint8)
    for column, offset in enumerate(offsets):
        # The second scale walks the list in another order, so that pairs differ.
        for i in range(count):
            bits = SCALES[(i * (1 + 6 * column) + 3 * column) % len(SCALES)]
            blocks[i, offset : offset + 2] = np.frombuffer(struct.pack("<H", bits), np.uint8)
    blocks[-2] = blocks[-2] & 0  # all bytes zero
    blocks[-1, :] = 0xFF  # all bits one, but for the scales
    for offset in offsets:
        blocks[-1, offset : offset + 2] = (0x00, 0xBC)  # -1
    return blocks


def walk_codebook(dtype, blocks):
    """Sets the indices of the first blocks to 0, 1, 2, ... up to the end of the codebook."""
    count = CODEBOOK_BLOCKS[dtype]
    walked = blocks[:count]
    if dtype == T.IQ2_XS:
        words = walked[:, 2:66].copy().view("<u2")
        words = (words & 0xFE00) | np.arange(words.size, dtype=np.uint16).reshape(words.shape)
        walked[:, 2:66] = words.view(np.uint8)
    elif dtype == T.IQ2_XXS:
        low = walked[:, 2:66].reshape(count, 8, 8)
        low[:, :, :4] = np.arange(256, dtype=np.uint8).reshape(count, 8, 4)
        walked[:, 2:66] = low.reshape(count, 64)
    else:
        per_block = 64 if dtype in (T.IQ3_XXS, T.IQ3_S) else 32
        indices = np.arange(count * per_block, dtype=np.uint16).reshape(count, per_block)
        walked[:, 2 : 2 + per_block] = indices & 0xFF
        if dtype == T.IQ3_S:
            walked[:, 66:74] = np.packbits((indices >> 8).astype(np.uint8), axis=-1, bitorder="little")
        elif dtype == T.IQ2_S:
            fields = (indices >> 8).reshape(count, 8, 4) << np.array([0, 2, 4, 6], np.uint16)
            walked[:, 66:74] = fields.sum(axis=-1)
        elif dtype == T.IQ1_S:
            fields = ((indices >> 8).reshape(count, 8, 4) << np.array([0, 3, 6, 9], np.uint16)).sum(axis=-1)
            words = (walked[:, 34:50].copy().view("<u2") & 0xF000) | fields.astype(np.uint16)
            walked[:, 34:50] = words.view(np.uint8)


def later_blocks(dtype, offsets):
    rng = np.random.default_rng([20240613, dtype])
    count = CODEBOOK_BLOCKS.get(dtype, 0) + {32: 42, 64: 66, 128: 24}.get(GGML_QUANT_SIZES[dtype][0], 12)
    blocks = random_blocks(dtype, count, offsets, rng)
    if dtype in CODEBOOK_BLOCKS:
        walk_codebook(dtype, blocks)
    if dtype == T.MXFP4:
        blocks[: len(EXPONENTS), 0] = EXPONENTS
    if dtype == T.NVFP4:  # all scales that there are
        blocks[:64, :4] = np.arange(256, dtype=np.uint8).reshape(64, 4)
    if dtype == T.IQ1_M:  # a nibble of the scale on top of each of the last four words
        words = blocks[:, 48:].copy().view("<u2") & 0x0FFF
        for i in range(count):
            bits = 0xBC00 if i == count - 1 else SCALES[i % len(SCALES)]
            words[i] |= np.array([bits << 12 & 0xF000, bits << 8 & 0xF000, bits << 4 & 0xF000, bits & 0xF000], np.uint16)
        blocks[:, 48:] = words.view(np.uint8)
    return blocks


def dequantize_q1_0(blocks):
    """Q1_0, which the package cannot read: ggml's `dequantize_row_q1_0` in numpy."""
    d = blocks[:, :2].copy().view("<f2").astype(np.float32)
    bits = np.unpackbits(blocks[:, 2:], axis=-1, bitorder="little")
    return np.where(bits == 1, d, -d)


def dequantize_q2_0(blocks):
    """Q2_0, which the package does not know: ggml's `dequantize_row_q2_0` in numpy."""
    d = blocks[:, :2].copy().view("<f2").astype(np.float32)
    quants = blocks[:, 2:, None] >> np.array([0, 2, 4, 6], np.uint8) & 3
    return (quants.reshape(len(blocks), 64).astype(np.float32) - 1) * d


def random_values():
    """256 values per row: what quantization meets, from ordinary to awkward."""
    rows = [RNG.normal(0, sigma, 256) for sigma in (1.0, 0.02, 900.0, 1e-6, 1e-9, 1e20)]
    rows.append(np.zeros(256))
    rows.append(np.full(256, -3.25))
    rows.append(np.arange(256) - 127.5)  # many ties
    rows.append(np.where(np.arange(256) % 32 == 7, 127.0, (np.arange(256) % 64 - 32) / 2))
    rows.append(np.where(RNG.random(256) < 0.9, 0.0, RNG.normal(0, 1, 256)))
    rows.append(RNG.uniform(0.5, 0.75, 256))  # far from zero: what a minimum is for
    rows.append(np.tile([5.0, -5.0], 128))  # the first of equal magnitudes decides the sign
    rows.append(np.full(256, 1e-38))
    rows.append(np.full(256, 1e-42))
    return np.array(rows, np.float32)


def random_floats():
    """Bit patterns for the conversions to F16 and BF16: everywhere, and around the ties."""
    bits = RNG.integers(0, 1 << 32, 512, dtype=np.uint32)
    middle = (RNG.integers(0, 1 << 16, 256, dtype=np.uint32) << 16) | 0x8000  # ties of BF16
    ordinary = RNG.integers(0x33000000 >> 12, 0x47900000 >> 12, 256, dtype=np.uint32) << 12  # ties of F16
    ends = np.array([0, 1, 0x007FFFFF, 0x00800000, 0x33000000, 0x33000001, 0x387FC000, 0x477FEFFF, 0x477FF000, 0x7F7FFFFF])
    bits = np.concatenate([bits, middle, ordinary, ends.astype(np.uint32)])
    bits = np.concatenate([bits, bits ^ np.uint32(0x80000000)])
    bits = bits[(bits & 0x7F800000) != 0x7F800000]
    return bits.view(np.float32)


def quantize_q8_k(values):
    """Q8_K, which the package cannot write: ggml's `quantize_row_q8_K_ref` in numpy."""
    out = []
    for row in values.reshape(-1, 256):
        largest = row[np.argmax(np.abs(row))]
        if np.abs(largest) < 4e-37:
            out.append(struct.pack("<f", 0.0) + bytes(256 + 32))
            continue
        factor = np.float32(-127.0) / largest
        quantized = np.minimum(np.rint(row * factor), 127).astype(np.int8)
        sums = quantized.reshape(16, 16).astype(np.int16).sum(axis=1, dtype=np.int16)
        out.append((np.float32(1.0) / factor).tobytes() + quantized.tobytes() + sums.tobytes())
    return b"".join(out)


def write(name, kind, elements, *sections):
    sections = [s if isinstance(s, bytes) else np.ascontiguousarray(s).tobytes() for s in sections]
    (FOLDER / f"{name}.{kind}").write_bytes(struct.pack("<I", elements) + b"".join(sections))


def main():
    FOLDER.mkdir(exist_ok=True)

    for dtype, offsets in SCALE_OFFSETS.items():
        length = GGML_QUANT_SIZES[dtype][0]
        blocks = random_blocks(dtype, 42 if length == 32 else 12, offsets)
        values = quants.dequantize(blocks, dtype)
        write(dtype.name.lower(), "dequantize", values.size, blocks, values)

    halves = np.arange(0, 1 << 16, dtype=np.uint16)
    f16 = halves[(halves & 0x7C00) != 0x7C00][::61].copy()
    write("f16", "dequantize", f16.size, f16, quants.dequantize(f16.view(np.uint8), T.F16))
    bf16 = halves[(halves & 0x7F80) != 0x7F80][::61].copy()
    write("bf16", "dequantize", bf16.size, bf16, quants.dequantize(bf16.view(np.uint8), T.BF16))

    floats = random_floats()
    write("f32", "dequantize", floats.size, floats, floats)
    with np.errstate(over="ignore"):
        write("f16", "quantize", floats.size, floats, quants.quantize(floats, T.F16))
    write("bf16", "quantize", floats.size, floats, quants.quantize(floats, T.BF16))

    # The rows of 1e-38 and 1e-42 make the package overflow; only Q8_K defines what they give.
    values = random_values()
    ordinary = values[:-2]
    for dtype in (T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0):
        with np.errstate(over="ignore"):
            write(dtype.name.lower(), "quantize", ordinary.size, ordinary, quants.quantize(ordinary, dtype))
    write("q8_k", "quantize", values.size, values, quantize_q8_k(values))

    for dtype, offsets in LATER_OFFSETS.items():
        blocks = later_blocks(dtype, offsets)
        with np.errstate(over="ignore"):
            values = dequantize_q1_0(blocks) if dtype == T.Q1_0 else quants.dequantize(blocks, dtype)
        write(dtype.name.lower(), "dequantize", values.size, blocks, values)

    # The layout of Q1_0 serves Q2_0 too: a scale and 16 bytes of quants.
    blocks = random_blocks(T.Q1_0, 24, [0], np.random.default_rng([20240613, 42]))
    values = dequantize_q2_0(blocks)
    write("q2_0", "dequantize", values.size, blocks, values)

    if len(sys.argv) > 1:
        write_samples(sys.argv[1])


# Samples: name, rows, columns. Their values come one after the other in `quantize.samples`, each followed by an importance
# per column.
SAMPLES = [("gaussian", 16, 512), ("heavy_tails", 16, 512), ("smollm2", 8, 1536)]
SEARCHED = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4"]


def write_samples(model):
    from gguf import GGUFReader

    rng = np.random.default_rng([20240613, 1000])
    # Rows of the down projections of five layers: one row is six blocks of 256.
    tensors = {tensor.name: tensor for tensor in GGUFReader(model).tensors}
    downs = [tensors[f"blk.{layer}.ffn_down.weight"] for layer in (0, 7, 15, 29)]
    rows = {
        "gaussian": rng.normal(0, 0.02, (16, 512)),
        "heavy_tails": rng.standard_t(3, (16, 512)) * 0.02,
        "smollm2": np.concatenate([quants.dequantize(down.data, down.tensor_type)[:2] for down in downs]),
    }
    data, lines = b"", []
    for name, count, columns in SAMPLES:
        values = rows[name].astype(np.float16)
        importance = np.exp(rng.normal(0, 1, columns)).astype(np.float16)
        assert values.shape == (count, columns)
        data += values.tobytes() + importance.tobytes()
        values, importance = values.astype(np.float32), importance.astype(np.float32)
        for dtype in SEARCHED:
            for kind, weights in (("plain", None), ("weighted", importance)):
                back = ggml_round_trip(T[dtype], values, weights)
                scale = 1 if weights is None else weights.astype(np.float64)
                error = np.sqrt((scale * (values - back) ** 2.0).sum() / (scale * values.astype(np.float64) ** 2).sum())
                lines.append(f"{dtype} {name} {kind} {error:.7f}\n")
    (FOLDER / "quantize.samples").write_bytes(data)
    (FOLDER / "quantize.errors").write_text("".join(lines))


def ggml_round_trip(dtype, values, importance):
    """What ggml's own quantization of the rows reads back as."""
    import libggml

    library = next((pathlib.Path(libggml.__file__).parent / "lib64").glob("libggml-base.so"))
    quantize = ctypes.CDLL(str(library)).ggml_quantize_chunk
    rows, columns = values.shape
    length, size = GGML_QUANT_SIZES[dtype]
    blocks = np.zeros((rows, columns // length * size), np.uint8)
    pointer = lambda array: None if array is None else array.ctypes.data_as(ctypes.c_void_p)
    counts = [ctypes.c_int64(count) for count in (0, rows, columns)]
    quantize(ctypes.c_int(dtype), pointer(values), pointer(blocks), *counts, pointer(importance))
    return quants.dequantize(blocks, dtype)


if __name__ == "__main__":
    main()
