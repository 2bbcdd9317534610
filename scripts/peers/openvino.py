"""OpenVINO, through openvino-genai's reader of GGUF files."""

import os

from .common import PROGRAMS, installed, python_with
from .program import Program


def make():
    python = python_with("openvino", ["openvino-genai"])
    return Program("openvino", installed(python, "openvino-genai"), [python, PROGRAMS / "measure_openvino.py"], dict(os.environ))
