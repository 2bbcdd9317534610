"""Measures mistral.rs on a GGUF file; see ../program.py. Runs in an environment that has mistralrs.

Its interface takes text rather than ids and may end an answer early, so rates are those of the tokens that it counted. The
number of threads comes from the environment.
"""

import json
import os
import sys

from mistralrs import CompletionRequest, Runner, Which

SENTENCE = " The lighthouse keeper climbed the narrow stairs each evening."


def main():
    what, model, (_, prompt, *gen) = sys.argv[1], sys.argv[2], map(int, sys.argv[3:])
    folder, name = os.path.split(os.path.abspath(model))
    which = Which.GGUF(quantized_model_id=folder, quantized_filename=name)
    runner = Runner(which=which, prefix_cache_n=0, token_source="none")

    def usage(text, new):
        request = CompletionRequest(model="default", prompt=text, max_tokens=new, temperature=0.0)
        return runner.send_completion_request(request).usage

    # Tokens per repetition of the sentence, for a prompt of about the wanted length.
    text = SENTENCE * max(1, round(prompt / 11))
    if what == "first":
        usage(text, 1)
        return
    gen, rates = gen[0], {}
    if prompt:
        usage(text, 1)
        rates["prefill"] = usage(text, 1).avg_prompt_tok_per_sec
    if gen:
        usage(SENTENCE, 2)
        rates["decode"] = usage(SENTENCE, gen).avg_compl_tok_per_sec
    print(json.dumps(rates))


main()
