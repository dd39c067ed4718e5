// A libllama program with FFN skipping: the lines that name the controller are all it takes.
//
//     generate MODEL.gguf PROMPT [N_TOKENS]
#include <ffnskip/ffnskip.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

int main(int argc, char ** argv) {
    if (argc < 3) {
        std::fprintf(stderr, "usage: generate MODEL.gguf PROMPT [N_TOKENS]\n");
        return 2;
    }
    const std::string prompt   = argv[2];
    const int         n_tokens = argc > 3 ? std::max(1, std::atoi(argv[3])) : 64;

    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    llama_model * model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (model == nullptr) {
        std::fprintf(stderr, "generate: can't load %s\n", argv[1]);
        return 2;
    }
    const llama_vocab *      vocab = llama_model_get_vocab(model);
    std::vector<llama_token> tokens(prompt.size() + 2);
    tokens.resize(size_t(std::max(0, llama_tokenize(vocab, prompt.data(), int32_t(prompt.size()), tokens.data(),
                                                    int32_t(tokens.size()), true, true))));

    ffnskip::Controller  controller;
    llama_context_params params = llama_context_default_params();
    params.n_ctx                = uint32_t(tokens.size()) + uint32_t(n_tokens);
    params.n_batch              = params.n_ctx;
    controller.attach(params);
    llama_context * ctx     = llama_init_from_model(model, params);
    llama_sampler * sampler = llama_sampler_init_greedy();
    controller.probe(ctx);
    controller.set_config({});  // FFN-SkipLLM with the paper's values

    for (int i = 0; i < n_tokens && !tokens.empty(); ++i) {
        if (controller.decode(ctx, llama_batch_get_one(tokens.data(), int32_t(tokens.size()))) != 0) {
            break;
        }
        tokens.assign(1, llama_sampler_sample(sampler, ctx, -1));
        if (llama_vocab_is_eog(vocab, tokens[0])) {
            break;
        }
        char      piece[256];
        const int n = llama_token_to_piece(vocab, tokens[0], piece, sizeof(piece), 0, false);
        std::printf("%.*s", std::max(0, n), piece);
        std::fflush(stdout);
    }
    std::fprintf(stderr, "\n%.1f %% of the FFN blocks skipped\n", 100.0 * controller.stats().skip_ratio());
    llama_sampler_free(sampler);
    llama_free(ctx);
    llama_model_free(model);
}
