"""Makes smollm2_text.json: what SmolLM2's tokenizer and chat template must give, by independent implementations.

    pip install gguf tokenizers jinja2
    python smollm2_text.py SmolLM2-135M-Instruct.Q4_1.gguf > smollm2_text.json

Tokens come from Hugging Face `tokenizers`, set up from the file's vocabulary as the model's published tokenizer is (digits alone,
then GPT-2's words); prompts from `jinja2`, set up as `transformers` does.
"""

import json
import sys

from gguf import GGUFReader
from jinja2 import ext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

TEXTS = [
    "", " ", "  ", "\t", "\n", "\n\n", " \n \n", "\r\n", "a", " a", "a ", "  a  b   c    ",
    "Hello, world!", "Why is the sky blue?", "The quick brown fox jumps over the lazy dog.",
    "I'm sure it's what they'd've said, isn't it? YOU'RE WE'LL 'tis 'S", "don\u2019t",
    "0", "12", "1234567890", "3.14159", "in 2024,  17 of 100", "1/2 \u00bd \u2167 \u0663\u0664 x\u00b2",
    "fn main() {\n    println!(\"{}\", 1 << 10);\n}\n", "\tif (a&&b) { return -1; } // done\n\n\n\treturn 0;",
    "SELECT * FROM t WHERE a<>'b';", "https://example.org/a-b_c?d=e&f=%20#g", "snake_case camelCase SCREAMING_CASE kebab-case",
    "\u00dcber \u00e5r \u00e7a va? \u00bfQu\u00e9 tal?", "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440!", "\u0393\u03b5\u03b9\u03ac \u03c3\u03bf\u03c5 \u039a\u03cc\u03c3\u03bc\u03b5",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002", "\u3053\u3093\u306b\u3061\u306f\u4e16\u754c", "\uc548\ub155\ud558\uc138\uc694", "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645", "\u0939\u093f\u0928\u094d\u0926\u0940", "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
    "e\u0301 vs \u00e9", "\U0001f642 \U0001f469\u200d\U0001f4bb \U0001f1eb\U0001f1f7 \u2602\ufe0f", "\u200b\u00a0\u3000\u2028|\ufeff|\u00ad|",
    "\x00\x01\x7f", "\U00082bef and \U0010fffd have bytes without tokens", "\ufffd",
    " \u3000 mixed \u00a0 spaces", "end with spaces   ", "   \n   begin", "x" * 300, "ab" * 100, " " * 70, "\n" * 40, "-" * 70, "=" * 33 + "\n",
    "<|im_end|>", "a<|im_start|>user\nhi<|im_end|>\n<|endoftext|>b", "< |im_end| > <|im_end", "<repo_name>x<file_sep><|im_start|><|im_start|>",
    "<0x0A>", "\u2581under\u2581", "\u0120\u010a",
]

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
CONVERSATIONS = [
    [(USER, "Why is the sky blue?")],
    [(SYSTEM, "Answer in one word."), (USER, "  Capital of France?\n")],
    [(USER, "a < b && 'c' > \"d\""), (ASSISTANT, "Yes."), (USER, "\u00c9t\u00e9 \U0001f642 {{ messages }} {% if %}")],
    [(SYSTEM, ""), (USER, "")],
]


def tokenizer(tokens, types, merges):
    vocabulary = {token: index for index, token in enumerate(tokens)}
    made = Tokenizer(models.BPE(vocabulary, [tuple(merge.split(" ")) for merge in merges]))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    special = [AddedToken(token, special=True, normalized=False) for token, kind in zip(tokens, types) if kind == 3]
    return made, special


def main():
    fields = GGUFReader(sys.argv[1]).fields
    read = lambda key: fields["tokenizer." + key].contents()
    tokens, types, merges = read("ggml.tokens"), read("ggml.token_type"), read("ggml.merges")
    made, special = tokenizer(tokens, types, merges)
    plain = [made.encode(text, add_special_tokens=False).ids for text in TEXTS]
    made.add_special_tokens(special)
    parsed = [made.encode(text, add_special_tokens=False).ids for text in TEXTS]

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[ext.loopcontrols])
    template = environment.from_string(read("chat_template"))
    prompts = []
    for conversation in CONVERSATIONS:
        messages = [{"role": role, "content": content} for role, content in conversation]
        for generation in (True, False):
            text = template.render(
                messages=messages,
                add_generation_prompt=generation,
                bos_token=tokens[read("ggml.bos_token_id")],
                eos_token=tokens[read("ggml.eos_token_id")],
            )
            prompts.append({"messages": conversation, "generation": generation, "prompt": text})

    # One case a line, so that a change shows as one.
    lines = lambda rows: ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
    cases = [{"text": t, "plain": a, "parsed": b} for t, a, b in zip(TEXTS, plain, parsed)]
    for case in cases:
        if case["plain"] == case["parsed"]:
            del case["parsed"]
    print('{"texts":[\n' + lines(cases) + '\n],"prompts":[\n' + lines(prompts) + "\n]}")


main()
