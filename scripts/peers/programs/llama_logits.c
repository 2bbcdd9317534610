/* llama.cpp's logits: `llama_logits MODEL TOKENS WINDOW THREADS OUT`.

   TOKENS holds little-endian u32; each window of WINDOW tokens is computed on an empty cache, and OUT gets the f32 logits of
   every position. Everything else is as llama.cpp has it by default. Built by compare_fidelity.py against a given libllama. */

#include "llama.h"

#include <stdio.h>
#include <stdlib.h>

static int fail(const char * what) {
    fprintf(stderr, "error: %s\n", what);
    return 1;
}

static void quiet(enum ggml_log_level level, const char * text, void * data) {
    (void) data;
    if (level == GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
}

int main(int argc, char ** argv) {
    if (argc != 6) return fail("usage: llama_logits MODEL TOKENS WINDOW THREADS OUT");
    const int window = atoi(argv[3]), threads = atoi(argv[4]);
    if (window < 1 || threads < 1) return fail("WINDOW and THREADS must be at least 1");
    FILE * in = fopen(argv[2], "rb"), * out = fopen(argv[5], "wb");
    llama_token * tokens = malloc(sizeof(llama_token) * window);
    if (!in || !out || !tokens) return fail("cannot open TOKENS or OUT");

    llama_log_set(quiet, NULL);
    llama_backend_init();
    struct llama_model * model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (!model) return fail("cannot load the model");
    struct llama_context_params params = llama_context_default_params();
    params.n_ctx = params.n_batch = params.n_ubatch = window;
    params.n_threads = params.n_threads_batch = threads;
    struct llama_context * context = llama_init_from_model(model, params);
    if (!context) return fail("cannot make a context");
    const size_t vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
    struct llama_batch batch = llama_batch_init(window, 0, 1);

    size_t count;
    while ((count = fread(tokens, sizeof(llama_token), window, in)) > 0) {
        llama_memory_clear(llama_get_memory(context), true);
        batch.n_tokens = (int) count;
        for (size_t i = 0; i < count; i++) {
            batch.token[i] = tokens[i];
            batch.pos[i] = (llama_pos) i;
            batch.n_seq_id[i] = 1;
            batch.seq_id[i][0] = 0;
            batch.logits[i] = 1;
        }
        if (llama_decode(context, batch) != 0) return fail("llama_decode failed");
        for (size_t i = 0; i < count; i++) {
            if (fwrite(llama_get_logits_ith(context, (int) i), sizeof(float), vocab, out) != vocab) return fail("cannot write");
        }
    }
    return fclose(out) ? fail("cannot write") : 0;
}
