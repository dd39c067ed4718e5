// callback MODEL N: N greedy tokens, watched by an evaluation callback of the program's own. Prints the tokens, and what
// the callback saw: how many nodes it was asked about, and a sum over the result of each evaluation.
#include "client.h"

#include <ggml-backend.h>

#include <cstring>

namespace {

struct Watch {
    long   asked = 0;
    long   shown = 0;
    double sum   = 0;
};

bool watch(ggml_tensor * node, bool ask, void * user_data) {
    Watch & seen = *static_cast<Watch *>(user_data);
    if (ask) {
        ++seen.asked;
        return std::strcmp(node->name, "result_output") == 0;
    }
    ++seen.shown;
    float first = 0;
    ggml_backend_tensor_get(node, &first, 0, sizeof(first));
    seen.sum += double(first);
    return true;
}

}  // namespace

int main(int argc, char ** argv) {
    require(argc == 3, "usage: callback MODEL N");
    const Model          model = load(argv[1]);
    Watch                seen;
    llama_context_params params = exact_params();
    params.cb_eval              = watch;
    params.cb_eval_user_data    = &seen;
    const Context ctx           = make_context(model, params);

    std::vector<llama_token> fed = prompt_of(model, 0), tokens;
    for (int i = 0; i < std::atoi(argv[2]); ++i) {
        require(llama_decode(ctx.get(), llama_batch_get_one(fed.data(), int32_t(fed.size()))) == 0, "decode failed");
        tokens.push_back(greedy(model, ctx.get(), -1));
        fed.assign(1, tokens.back());
    }
    print_tokens(tokens);
    std::printf("asked %ld shown %ld sum %.9g\n", seen.asked, seen.shown, seen.sum);
}
