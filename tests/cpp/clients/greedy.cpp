// greedy MODEL N [ext|fit]: N tokens after the prompt of sequence 0, by llama_decode, or by llama_process with "ext". With
// "fit" it first makes a context of the model without allocating either, as programs do to see how much memory they take.
#include "client.h"

#include <cstring>

namespace {

int32_t decode(llama_context * ctx, std::vector<llama_token> & tokens) {
    return llama_decode(ctx, llama_batch_get_one(tokens.data(), int32_t(tokens.size())));
}

#ifdef HAVE_LLAMA_PROCESS
int32_t process(llama_context * ctx, const std::vector<llama_token> & tokens, llama_pos pos) {
    struct FreeBatch {
        void operator()(llama_batch_ext * batch) const { llama_batch_ext_free(batch); }
    };
    static const std::unique_ptr<llama_batch_ext, FreeBatch> owned(llama_batch_ext_init(ctx));
    llama_batch_ext * const                                  batch = owned.get();
    llama_batch_ext_clear(batch);
    int32_t row = -1;
    for (const llama_token token : tokens) {
        row = llama_batch_ext_add_token(batch, 0, token);
        llama_batch_ext_set_pos(batch, row, &pos);
        ++pos;
    }
    llama_batch_ext_set_output_logits(batch, row, true);
    return llama_process(ctx, LLAMA_PROCESS_TYPE_DECODE, batch);
}
#else
int32_t process(llama_context *, const std::vector<llama_token> &, llama_pos) {
    return -1;  // this llama.cpp is too old
}
#endif

void fit(const char * path) {
    llama_model_params params = llama_model_default_params();
    params.no_alloc           = true;
#ifdef HAVE_LLAMA_LOAD_MODE
    params.load_mode = LLAMA_LOAD_MODE_NONE;
#else
    params.use_mmap = false;
#endif
    const Model model(llama_model_load_from_file(path, params));
    require(model != nullptr, "no model to fit");
    make_context(model, exact_params());
}

}  // namespace

int main(int argc, char ** argv) {
    require(argc >= 3, "usage: greedy MODEL N [ext|fit]");
    const bool  ext   = argc > 3 && std::strcmp(argv[3], "ext") == 0;
    const Model model = load(argv[1]);
    if (argc > 3 && std::strcmp(argv[3], "fit") == 0) {
        fit(argv[1]);
    }
    const Context ctx = make_context(model, exact_params());

    std::vector<llama_token> fed = prompt_of(model, 0);
    std::vector<llama_token> tokens;
    llama_pos                pos = 0;
    for (int i = 0; i < std::atoi(argv[2]); ++i) {
        require((ext ? process(ctx.get(), fed, pos) : decode(ctx.get(), fed)) == 0, "decode failed");
        pos += llama_pos(fed.size());
        tokens.push_back(greedy(model, ctx.get(), -1));
        fed.assign(1, tokens.back());
    }
    print_tokens(tokens);
}
