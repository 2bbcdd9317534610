"""mistral.rs, through its prebuilt Python package."""

import os

from .common import PROGRAMS, installed, python_with
from .program import Program


def make(threads):
    python = python_with("mistralrs", ["mistralrs"])
    # Everything comes from the file; nothing may be looked up elsewhere.
    environment = dict(os.environ, RAYON_NUM_THREADS=str(threads), HF_HUB_OFFLINE="1")
    return Program("mistral.rs", installed(python, "mistralrs"), [python, PROGRAMS / "measure_mistralrs.py"], environment)
