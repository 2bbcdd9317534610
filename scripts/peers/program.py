"""Engines that are libraries: a small program around each, with one command line and one form of answer.

    PROGRAM rates MODEL THREADS PROMPT GEN
    PROGRAM first MODEL THREADS PROMPT

The first computes a prompt of PROMPT tokens and then, on an empty cache, GEN tokens one by one, each once to warm up and once
by the clock (a part of 0 tokens is left out), and prints {"prefill": tokens/s, "decode": tokens/s}. The second computes a
prompt and the token after it, so that the wall time of the whole process is that of a first token.
"""

import json

from .common import SHORT_PROMPT, run


class Program:
    """A measuring program; `command` starts it."""

    def __init__(self, name, version, command, environment):
        self.name, self.version, self.command, self.environment = name, version, command, environment

    def rates(self, model, args):
        out, _, peak = run([*self.command, "rates", model, args.threads, args.prompt, args.gen], self.environment)
        # Engines may log to standard output; the answer is the last line.
        return json.loads(out.splitlines()[-1]), peak

    def batched(self, model, args):
        return {}

    def first_token(self, model, prompt, args):
        return [*self.command, "first", model, args.threads, SHORT_PROMPT]
