// A libllama program in C with FFN skipping, as the model's profile says or, without one, Algorithm 1 with a tenth of
// the FFN blocks.
//
//     generate MODEL.gguf PROMPT [N_TOKENS]
#include <ffnskip.h>

#include <llama.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void only_errors(enum ggml_log_level level, const char * text, void * data) {
    (void) data;
    if (level == GGML_LOG_LEVEL_ERROR) {
        fputs(text, stderr);
    }
}

// Prints text up to N_TOKENS; false where that fails.
static int generate(struct ffnskip_controller * skip, struct llama_context * ctx, struct llama_sampler * sampler,
                    llama_token * prompt, int n_prompt, int n_tokens) {
    const struct llama_vocab * vocab = llama_model_get_vocab(llama_get_model(ctx));
    struct llama_batch         batch = llama_batch_get_one(prompt, n_prompt);
    for (int i = 0; i < n_tokens; ++i) {
        if (ffnskip_decode(skip, ctx, batch) != FFNSKIP_OK) {
            fprintf(stderr, "generate: %s\n", ffnskip_last_error(skip));
            return 0;
        }
        llama_token token = llama_sampler_sample(sampler, ctx, -1);
        if (llama_vocab_is_eog(vocab, token)) {
            break;
        }
        char      piece[256];
        const int length = llama_token_to_piece(vocab, token, piece, sizeof(piece), 0, false);
        fwrite(piece, 1, length > 0 ? (size_t) length : 0, stdout);
        fflush(stdout);
        prompt[0] = token;
        batch     = llama_batch_get_one(prompt, 1);
    }
    putchar('\n');
    return 1;
}

static void print_statistics(struct ffnskip_controller * skip) {
    struct ffnskip_stats stats = { .size = sizeof(stats) };
    ffnskip_get_stats(skip, &stats);
    fprintf(stderr, "tokens %llu, FFN blocks %llu, skipped %llu, checks %llu\n", (unsigned long long) stats.tokens,
            (unsigned long long) stats.ffn_total, (unsigned long long) stats.ffn_skipped,
            (unsigned long long) stats.checks);
    for (uint64_t il = 0; il < stats.n_layer; ++il) {
        fprintf(stderr, "%s%llu", il == 0 ? "per layer: " : " ", (unsigned long long) stats.skipped_per_layer[il]);
    }
    fputc('\n', stderr);
}

int main(int argc, char ** argv) {
    if (argc < 3) {
        fprintf(stderr, "usage: generate MODEL.gguf PROMPT [N_TOKENS]\n");
        return 2;
    }
    const int n_tokens = argc > 3 && atoi(argv[3]) > 0 ? atoi(argv[3]) : 64;

    llama_log_set(only_errors, NULL);
    struct llama_model * model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (model == NULL) {
        fprintf(stderr, "generate: can't load %s\n", argv[1]);
        return 1;
    }
    const int     room     = (int) strlen(argv[2]) + 2;
    llama_token * prompt   = calloc((size_t) room, sizeof(llama_token));
    const int     n_prompt = llama_tokenize(llama_model_get_vocab(model), argv[2], room - 2, prompt, room, true, true);

    struct ffnskip_controller * skip   = ffnskip_init();
    struct llama_context_params params = llama_context_default_params();
    params.n_ctx                       = (uint32_t) (n_prompt + n_tokens);
    params.n_batch                     = params.n_ctx;
    if (ffnskip_attach(skip, &params) != FFNSKIP_OK) {
        fprintf(stderr, "generate: %s\n", ffnskip_last_error(skip));
        return 1;
    }
    struct llama_context * ctx     = llama_init_from_model(model, params);
    struct llama_sampler * sampler = llama_sampler_init_greedy();
    if (ctx == NULL) {
        fprintf(stderr, "generate: no memory for %u tokens\n", params.n_ctx);
        return 1;
    }

    if (ffnskip_find_profile(skip, model, argv[1]) == FFNSKIP_NO_PROFILE) {
        ffnskip_set_option(skip, "skip-ratio", "0.1");
    }
    if (ffnskip_probe(skip, ctx) != FFNSKIP_OK) {
        fprintf(stderr, "generate: %s; it runs dense\n", ffnskip_last_error(skip));
    }
    const int done = generate(skip, ctx, sampler, prompt, n_prompt, n_tokens);
    print_statistics(skip);

    llama_sampler_free(sampler);
    llama_free(ctx);
    ffnskip_free(skip);
    llama_model_free(model);
    free(prompt);
    return done ? 0 : 1;
}
