"""candle: a small program around candle-transformers' quantized llama, built with the flags of this processor."""

import os
import subprocess
import sys

from .common import PEERS, PROGRAMS, say
from .program import Program

VERSION = "0.11.1"
MANIFEST = f"""[package]
name = "candle-bench"
version = "0.0.0"
edition = "2024"

[workspace]

[dependencies]
candle-core = "={VERSION}"
candle-transformers = "={VERSION}"

[[bin]]
name = "candle-bench"
path = "main.rs"
"""


def make(threads):
    folder = PEERS / "candle"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "Cargo.toml").write_text(MANIFEST)
    (folder / "main.rs").write_text((PROGRAMS / "measure_candle.rs").read_text())
    # candle chooses instructions when it is compiled.
    environment = dict(os.environ, RUSTFLAGS="-C target-cpu=native", CARGO_TARGET_DIR=str(folder / "target"))
    say(f"building candle {VERSION} (some minutes the first time)")
    subprocess.run(["cargo", "build", "--release", "--quiet"], check=True, cwd=folder, env=environment, stdout=sys.stderr)
    environment = dict(os.environ, RAYON_NUM_THREADS=str(threads), CANDLE_NUM_THREADS=str(threads))
    return Program("candle", f"candle-transformers {VERSION}", [folder / "target" / "release" / "candle-bench"], environment)
