// turns MODEL N: N tokens after the prompt of sequence 0, then a second prompt behind them, and N tokens more.
#include "client.h"

int main(int argc, char ** argv) {
    require(argc == 3, "usage: turns MODEL N");
    const Model   model = load(argv[1]);
    const Context ctx   = make_context(model, exact_params());

    std::vector<llama_token> fed = prompt_of(model, 0);
    for (int turn = 0; turn < 2; ++turn) {
        std::vector<llama_token> tokens;
        for (int i = 0; i < std::atoi(argv[2]); ++i) {
            require(llama_decode(ctx.get(), llama_batch_get_one(fed.data(), int32_t(fed.size()))) == 0, "decode failed");
            tokens.push_back(greedy(model, ctx.get(), -1));
            fed.assign(1, tokens.back());
        }
        print_tokens(tokens);
        const std::vector<llama_token> next = prompt_of(model, 3);
        fed.insert(fed.end(), next.begin(), next.end());  // behind the last token, which was not decoded yet
    }
}
