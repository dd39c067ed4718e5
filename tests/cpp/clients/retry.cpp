// retry MODEL N: N tokens after the prompt of sequence 0. Each is first put into a batch with more of another sequence than
// there is room for, which llama_decode refuses, and then decoded alone, as servers do.
#include "client.h"

namespace {

void add(llama_batch & batch, llama_seq_id seq, llama_pos pos, const std::vector<llama_token> & tokens, bool output) {
    for (size_t i = 0; i < tokens.size(); ++i) {
        add_row(batch, seq, pos++, tokens[i], output && i + 1 == tokens.size());
    }
}

}  // namespace

int main(int argc, char ** argv) {
    require(argc == 3, "usage: retry MODEL N");
    const Model          model  = load(argv[1]);
    llama_context_params params = exact_params();
    params.n_ctx                = 256;
    params.n_seq_max            = 2;
    params.kv_unified           = true;
    const Context ctx           = make_context(model, params);

    llama_batch                    batch = llama_batch_init(256, 0, 1);
    const std::vector<llama_token> filler(150, 1);
    add(batch, 1, 0, filler, false);
    require(llama_decode(ctx.get(), batch) == 0, "decode failed");

    std::vector<llama_token> fed = prompt_of(model, 0), tokens;
    llama_pos                pos = 0;
    for (int i = 0; i < std::atoi(argv[2]); ++i) {
        batch.n_tokens = 0;
        add(batch, 0, pos, fed, true);
        add(batch, 1, llama_pos(filler.size()), filler, false);
        require(llama_decode(ctx.get(), batch) == 1, "there was room");
        batch.n_tokens = int32_t(fed.size());
        require(llama_decode(ctx.get(), batch) == 0, "decode failed");
        tokens.push_back(greedy(model, ctx.get(), batch.n_tokens - 1));
        pos += llama_pos(fed.size());
        fed.assign(1, tokens.back());
    }
    llama_batch_free(batch);
    print_tokens(tokens);
}
