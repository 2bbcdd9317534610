"""The model files that all engines read, and what a file says of its key/value cache."""

import json
import subprocess
import sys
from pathlib import Path

from .common import ROOT, run, say, tools_python

# Name to shape and mix of `make_synthetic.py`.
SYNTHETIC = {
    "1b-q4_0": ("1b", "Q4_0"),
    "1b-q4_k_m": ("1b", "Q4_K_M"),
    "1b-q6_k": ("1b", "Q6_K"),
    "1b-q8_0": ("1b", "Q8_0"),
    "8b-q4_k_m": ("8b", "Q4_K_M"),
}
NAMES = ["smollm2", *SYNTHETIC]
F16_BYTES = 2


def model_files(names, folder, rustai, smollm2):
    """Paths of the model files by name; makes those that are missing."""
    smollm2 = smollm2 or pulled(rustai)
    made = lambda name: synthetic(folder / f"{name}.gguf", *SYNTHETIC[name], smollm2)
    other = lambda name: smollm2 if name == "smollm2" else Path(name).resolve()
    return {name: made(name) if name in SYNTHETIC else other(name) for name in names}


def pulled(rustai):
    """The default model, fetched if it is not in the cache."""
    return Path(run([rustai, "pull"], None)[0].strip())


def synthetic(path, shape, mix, donor):
    """A file of random weights, written if it is missing."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        say(f"writing {path.name}")
        maker = [tools_python(), ROOT / "scripts" / "make_synthetic.py", "--shape", shape, "--type", mix]
        subprocess.run([*maker, "--donor", donor, "--out", path], check=True, stdout=sys.stderr)
    return path


def cache_bytes(rustai, path, tokens):
    """Bytes of an f16 key/value cache of so many tokens."""
    facts = json.loads(run([rustai, "inspect", path, "--json", "--no-tensors"], None)[0])["metadata"]
    of = lambda key, otherwise=None: facts.get(f"{facts['general.architecture']}.{key}", otherwise)
    heads = of("attention.head_count")
    width = of("embedding_length") // heads
    per_head = of("attention.key_length", width) + of("attention.value_length", width)
    return of("block_count") * of("attention.head_count_kv", heads) * per_head * F16_BYTES * tokens
