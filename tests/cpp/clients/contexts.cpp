// contexts MODEL N: N tokens after the prompts of sequences 0 and 1, by a context in a thread of its own each, and after
// that of sequence 0 once more. Opens the model by its older name, from a folder that it leaves before it makes a context.
#include "client.h"

#include <unistd.h>

#include <thread>

namespace {

std::vector<llama_token> generate(const Model & model, int seq, int n) {
    const Context            ctx = make_context(model, exact_params());
    std::vector<llama_token> fed = prompt_of(model, seq);
    std::vector<llama_token> tokens;
    for (int i = 0; i < n; ++i) {
        require(llama_decode(ctx.get(), llama_batch_get_one(fed.data(), int32_t(fed.size()))) == 0, "decode failed");
        tokens.push_back(greedy(model, ctx.get(), -1));
        fed.assign(1, tokens.back());
    }
    return tokens;
}

Model load_by_older_name(const char * path) {
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    llama_backend_init();
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
    Model model(llama_load_model_from_file(path, llama_model_default_params()));
#pragma GCC diagnostic pop
    require(model != nullptr, "no model");
    return model;
}

}  // namespace

int main(int argc, char ** argv) {
    require(argc == 3, "usage: contexts MODEL N");
    const int   n     = std::atoi(argv[2]);
    const Model model = load_by_older_name(argv[1]);
    require(chdir("/") == 0, "no root folder");

    std::vector<llama_token> first, second;
    std::thread              one([&] { first = generate(model, 0, n); });
    std::thread              two([&] { second = generate(model, 1, n); });
    one.join();
    two.join();
    print_tokens(first);
    print_tokens(second);
    print_tokens(generate(model, 0, n));
}
