#!/usr/bin/env python3
"""Writes a GGUF model with the shape of a real llama and random weights, for measuring speed and arithmetic errors.

The weights mean nothing, but every engine reads the same bytes, and sizes, types and shapes are those of a real file.
Blocks are drawn in their quantized form, so a file takes seconds. Which tensor gets which type follows the common mixes:
Q4_0 (embedding Q6_K), Q4_K_M (output, and half of the layers' attn_v and ffn_down, Q6_K), Q6_K, Q8_0 and F16 (everything).
The tokenizer is copied from a donor file, its vocabulary padded to the model's size.

    make_synthetic.py --type Q4_K_M --donor smollm2.gguf --out 1b-q4_k_m.gguf

Needs numpy. The same arguments give the same bytes.
"""

import argparse
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

MAGIC = b"GGUF"
ALIGNMENT = 32
U32, F32, STRING, ARRAY = 4, 6, 8, 9
SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
UNUSED_TOKEN = 5
CHUNK_ELEMENTS = 1 << 24


@dataclass(frozen=True)
class Shape:
    """Hyper-parameters, those of Llama 3.2 1B unless given otherwise."""

    layers: int = 16
    width: int = 2048
    hidden: int = 8192
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 64
    vocab: int = 128256
    context: int = 131072
    rope_base: float = 500000.0
    tied: bool = True  # the output matrix is the embedding
    scaled_rope: bool = True


SHAPES = {
    "1b": Shape(),
    # Llama 3 8B.
    "8b": Shape(
        layers=32, width=4096, hidden=14336, head_dim=128, context=8192, tied=False, scaled_rope=False
    ),
    "tiny": Shape(layers=2, width=256, hidden=512, heads=4, kv_heads=2, vocab=49152, context=2048, rope_base=1e5),
    # For arithmetic errors: rows of the length of small and of larger models.
    "narrow": Shape(layers=8, width=512, hidden=1536, heads=8, kv_heads=4, vocab=49152, context=2048, rope_base=1e5),
    "wide": Shape(layers=8, width=1024, hidden=2816, heads=16, kv_heads=4, vocab=49152, context=2048, rope_base=1e5),
}

# ---- block types: GGUF id, elements per block, memory layout, and how a block is drawn


def scales(rng, count, mean, signed=True):
    """f16 scales within 25 % of `mean`. Random signs make the weights' mean zero."""
    values = mean * rng.uniform(0.75, 1.25, count)
    if signed:
        values *= rng.integers(0, 2, count) * 2 - 1
    return values.astype(np.float16)


def random_bytes(rng, count, width):
    return rng.integers(0, 256, (count, width), dtype=np.uint8)


def draw_f32(rng, blocks, std):
    blocks["w"] = rng.normal(0.0, std, len(blocks))


def draw_f16(rng, blocks, std):
    blocks["w"] = rng.normal(0.0, std, len(blocks))


def draw_q4_0(rng, blocks, std):
    # Nibbles are uniform over 16 values, whose deviation is 4.61.
    blocks["d"] = scales(rng, len(blocks), std / 4.61)
    blocks["q"] = random_bytes(rng, len(blocks), 16)


def draw_q8_0(rng, blocks, std):
    blocks["d"] = scales(rng, len(blocks), std / 73.9)
    blocks["q"] = random_bytes(rng, len(blocks), 32)


def draw_q4_k(rng, blocks, std):
    # A weight is d * scale * q - dmin * min. With min = scale and dmin = 7.5 d, its mean is zero.
    d = scales(rng, len(blocks), std / 4.61 / 40, signed=False)
    blocks["d"] = d
    blocks["dmin"] = (7.5 * d.astype(np.float32)).astype(np.float16)
    six_bits = rng.integers(24, 56, (len(blocks), 8), dtype=np.uint8)
    low, high = six_bits[:, :4], six_bits[:, 4:]
    # Bytes 0-3: scales 0-3 and the top bits of scales 4-7; 4-7: the same of the minima; 8-11: low nibbles of both.
    first = low | ((high >> 4) << 6)
    blocks["scales"] = np.concatenate([first, first, (high & 15) | ((high & 15) << 4)], axis=1)
    blocks["q"] = random_bytes(rng, len(blocks), 128)


def draw_q6_k(rng, blocks, std):
    blocks["low"] = random_bytes(rng, len(blocks), 128)
    blocks["high"] = random_bytes(rng, len(blocks), 64)
    signs = rng.integers(0, 2, (len(blocks), 16), dtype=np.int8) * 2 - 1
    blocks["scales"] = rng.integers(40, 88, (len(blocks), 16), dtype=np.int8) * signs
    blocks["d"] = scales(rng, len(blocks), std / 18.5 / 64, signed=False)


TYPES = {
    "F32": (0, 1, np.dtype([("w", "<f4")]), draw_f32),
    "F16": (1, 1, np.dtype([("w", "<f2")]), draw_f16),
    "Q4_0": (2, 32, np.dtype([("d", "<f2"), ("q", "u1", 16)]), draw_q4_0),
    "Q8_0": (8, 32, np.dtype([("d", "<f2"), ("q", "u1", 32)]), draw_q8_0),
    "Q4_K": (12, 256, np.dtype([("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("q", "u1", 128)]), draw_q4_k),
    "Q6_K": (14, 256, np.dtype([("low", "u1", 128), ("high", "u1", 64), ("scales", "i1", 16), ("d", "<f2")]), draw_q6_k),
}

# File type id, type of matrices, type of the matrices that get more bits, type of the output matrix. An embedding of its own
# has the type of the other matrices.
MIXES = {
    "F16": (1, "F16", "F16", "F16"),
    "Q4_0": (2, "Q4_0", "Q4_0", "Q6_K"),
    "Q8_0": (7, "Q8_0", "Q8_0", "Q8_0"),
    "Q4_K_M": (15, "Q4_K", "Q6_K", "Q6_K"),
    "Q6_K": (18, "Q6_K", "Q6_K", "Q6_K"),
}


@dataclass(frozen=True)
class Tensor:
    name: str
    dims: tuple  # fastest first
    type: str
    kind: str = "matrix"

    @property
    def elements(self):
        return int(np.prod(self.dims, dtype=np.int64))

    @property
    def bytes(self):
        _, block, layout, _ = TYPES[self.type]
        assert self.dims[0] % block == 0, f"{self.name}: rows of {self.dims[0]} are no multiple of {block}"
        return self.elements // block * layout.itemsize


def tensors(shape, mix):
    _, plain, better, output = MIXES[mix]
    q_width, kv_width = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    yield Tensor("token_embd.weight", (shape.width, shape.vocab), output if shape.tied else plain)
    yield Tensor("output_norm.weight", (shape.width,), "F32", "norm")
    if shape.scaled_rope:
        yield Tensor("rope_freqs.weight", (shape.head_dim // 2,), "F32", "rope")
    eighth = shape.layers // 8
    for layer in range(shape.layers):
        # More bits for the first and last eighth of the layers and every third between.
        edge = layer < eighth or layer >= 7 * shape.layers // 8
        more = better if edge or (layer - eighth) % 3 == 2 else plain
        for name, columns, rows, type_ in [
            ("attn_q", shape.width, q_width, plain),
            ("attn_k", shape.width, kv_width, plain),
            ("attn_v", shape.width, kv_width, more),
            ("attn_output", q_width, shape.width, plain),
            ("ffn_gate", shape.width, shape.hidden, plain),
            ("ffn_up", shape.width, shape.hidden, plain),
            ("ffn_down", shape.hidden, shape.width, more),
        ]:
            yield Tensor(f"blk.{layer}.{name}.weight", (columns, rows), type_)
        for name in ("attn_norm", "ffn_norm"):
            yield Tensor(f"blk.{layer}.{name}.weight", (shape.width,), "F32", "norm")
    if not shape.tied:
        yield Tensor("output.weight", (shape.width, shape.vocab), output)


def rope_factors(shape):
    """Divisors of the rotation frequencies: the Llama 3 scaling with factor 32 over an original context of 8192."""
    frequency = shape.rope_base ** (-np.arange(0, shape.head_dim, 2) / shape.head_dim)
    turns = 8192 * frequency / (2 * np.pi)
    smooth = np.clip((turns - 1) / (4 - 1), 0, 1)
    return 1 / (smooth + (1 - smooth) / 32)


def payload(tensor, index, shape, seed, std):
    """A tensor's bytes, in pieces."""
    rng = np.random.default_rng([seed, index])
    if tensor.kind == "norm":
        yield rng.normal(1.0, 0.05, tensor.elements).astype("<f4").tobytes()
        return
    if tensor.kind == "rope":
        yield rope_factors(shape).astype("<f4").tobytes()
        return
    _, block, layout, draw = TYPES[tensor.type]
    left = tensor.elements
    while left:
        now = min(left, CHUNK_ELEMENTS)
        blocks = np.empty(now // block, layout)
        draw(rng, blocks, std)
        yield blocks.tobytes()
        left -= now


# ---- metadata


def text(value):
    encoded = value.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def array(item_type, count, items):
    return struct.pack("<IQ", item_type, count) + items


def end_of_value(data, at, value_type):
    if value_type == STRING:
        return at + 8 + struct.unpack_from("<Q", data, at)[0]
    if value_type == ARRAY:
        item_type, count = struct.unpack_from("<IQ", data, at)
        at += 12
        if item_type in SCALAR_BYTES:
            return at + count * SCALAR_BYTES[item_type]
        for _ in range(count):
            at = end_of_value(data, at, item_type)
        return at
    return at + SCALAR_BYTES[value_type]


def donor_tokenizer(path):
    """The `tokenizer.*` entries of a file: key to (type, raw bytes)."""
    with open(path, "rb") as file:
        data = file.read(64 << 20)
    version, _, entries = struct.unpack_from("<IQQ", data, 4)
    if data[:4] != MAGIC or version not in (2, 3):
        sys.exit(f"error: {path} is not a GGUF file of version 2 or 3")
    at, found = 24, {}
    for _ in range(entries):
        length = struct.unpack_from("<Q", data, at)[0]
        key = data[at + 8 : at + 8 + length].decode()
        at += 8 + length
        value_type = struct.unpack_from("<I", data, at)[0]
        end = end_of_value(data, at + 4, value_type)
        if key.startswith("tokenizer."):
            found[key] = (value_type, data[at + 4 : end])
        at = end
    return found


def pad_vocabulary(entries, vocab):
    """Fills the vocabulary up with unused tokens."""

    def extend(key, make):
        if key not in entries:
            return
        value_type, raw = entries[key]
        item_type, count = struct.unpack_from("<IQ", raw)
        if count > vocab:
            sys.exit(f"error: the donor has {count} tokens, the model only {vocab}")
        entries[key] = (value_type, array(item_type, vocab, raw[12:] + make(count)))

    extend("tokenizer.ggml.tokens", lambda n: b"".join(text(f"<|unused_{i}|>") for i in range(n, vocab)))
    extend("tokenizer.ggml.token_type", lambda n: np.full(vocab - n, UNUSED_TOKEN, "<i4").tobytes())
    extend("tokenizer.ggml.scores", lambda n: np.zeros(vocab - n, "<f4").tobytes())


def metadata(shape, mix, seed, donor):
    u32 = lambda value: (U32, struct.pack("<I", value))
    f32 = lambda value: (F32, struct.pack("<f", value))
    entries = {
        "general.architecture": (STRING, text("llama")),
        "general.name": (STRING, text(f"synthetic {mix} seed {seed}")),
        "general.file_type": u32(MIXES[mix][0]),
        "general.quantization_version": u32(2),
        "llama.block_count": u32(shape.layers),
        "llama.context_length": u32(shape.context),
        "llama.embedding_length": u32(shape.width),
        "llama.feed_forward_length": u32(shape.hidden),
        "llama.attention.head_count": u32(shape.heads),
        "llama.attention.head_count_kv": u32(shape.kv_heads),
        "llama.attention.key_length": u32(shape.head_dim),
        "llama.attention.value_length": u32(shape.head_dim),
        "llama.attention.layer_norm_rms_epsilon": f32(1e-5),
        "llama.rope.dimension_count": u32(shape.head_dim),
        "llama.rope.freq_base": f32(shape.rope_base),
        "llama.vocab_size": u32(shape.vocab),
    }
    entries.update(donor_tokenizer(donor))
    pad_vocabulary(entries, shape.vocab)
    return entries


def write(path, shape, mix, donor, seed=1, std=0.02):
    """Writes the file; it gets its name only when it is whole."""
    entries, listed = metadata(shape, mix, seed, donor), list(tensors(shape, mix))
    header = MAGIC + struct.pack("<IQQ", 3, len(listed), len(entries))
    for key, (value_type, raw) in entries.items():
        header += text(key) + struct.pack("<I", value_type) + raw
    offset = 0
    for tensor in listed:
        header += text(tensor.name) + struct.pack(f"<I{len(tensor.dims)}Q", len(tensor.dims), *tensor.dims)
        header += struct.pack("<IQ", TYPES[tensor.type][0], offset)
        offset += -(-tensor.bytes // ALIGNMENT) * ALIGNMENT
    partial = Path(f"{path}.partial")
    with open(partial, "wb") as file:
        file.write(header + bytes(-len(header) % ALIGNMENT))
        for index, tensor in enumerate(listed):
            for piece in payload(tensor, index, shape, seed, std):
                file.write(piece)
            file.write(bytes(-tensor.bytes % ALIGNMENT))
    partial.rename(path)
    return offset


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--type", choices=MIXES, default="Q4_0")
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--donor", type=Path, required=True, help="a GGUF file whose tokenizer is copied")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    size = write(args.out, SHAPES[args.shape], args.type, args.donor, args.seed)
    print(f"{args.out}: {size / 1e6:.1f} MB of tensors")


if __name__ == "__main__":
    main()
