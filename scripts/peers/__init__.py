"""The engines that `compare_peers.py` measures beside each other, one file each, and what they share (`common`, `files`).

An engine is an object with

    name                    as the tables call it
    version                 what it is, for the record
    environment             of its processes
    rates(model, args)      tokens per second as {"decode": ..., "prefill": ...}, and the peak resident set in bytes
    batched(model, args)    tokens per second of several sequences that decode together, by their number; {} if not measured
    first_token(model, prompt, args)   the command of a whole process that loads, computes a short prompt and one token

and reports what it cannot run by a `RuntimeError`.
"""
