"""Measures OpenVINO on a GGUF file; see ../program.py. Runs in an environment that has openvino-genai."""

import itertools
import json
import sys
import time

import numpy
import openvino
import openvino_genai


def main():
    what, model, (threads, prompt, *gen) = sys.argv[1], sys.argv[2], map(int, sys.argv[3:])
    pipeline = openvino_genai.LLMPipeline(model, "CPU", INFERENCE_NUM_THREADS=threads)

    # The pipeline remembers the prompts that it has seen, so each begins with another token.
    begins = itertools.count()

    def seconds(tokens, new):
        ids = ((numpy.arange(tokens, dtype=numpy.int64) * 7919 + next(begins)) % 30000 + 1000)[None]
        inputs = openvino_genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(numpy.ones_like(ids)))
        config = openvino_genai.GenerationConfig(max_new_tokens=new, ignore_eos=True, do_sample=False)
        started = time.perf_counter()
        pipeline.generate(inputs, config)
        return time.perf_counter() - started

    if what == "first":
        seconds(prompt, 1)
        return
    gen, rates = gen[0], {}
    if prompt:
        seconds(prompt, 1)
        rates["prefill"] = prompt / seconds(prompt, 1)
    if gen:
        seconds(1, 2)
        # The first of these tokens comes out of the prompt's one.
        rates["decode"] = gen / seconds(1, gen)
    print(json.dumps(rates))


main()
