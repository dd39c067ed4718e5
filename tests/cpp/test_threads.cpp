// Property: contexts that decode in threads of their own keep to themselves. Run with the thread sanitizer too.
#include "clients/client.h"
#include "expect.h"
#include "ffnskip/ffnskip.h"

#include <thread>

using namespace ffnskip;

namespace {

std::vector<llama_token> generate(const Model & model, int seq, int max_skip) {
    Controller           controller;
    llama_context_params params = exact_params();
    params.n_ctx                = 512;
    controller.attach(params);
    const Context ctx = make_context(model, params);
    controller.probe(ctx.get());
    Config config;
    config.sim_threshold = -1.0f;
    config.warm_up_index = 0;
    config.max_skip      = max_skip;
    controller.set_config(config);

    std::vector<llama_token> fed = prompt_of(model, seq), tokens;
    for (int i = 0; i < 40; ++i) {
        expect(controller.decode(ctx.get(), llama_batch_get_one(fed.data(), int32_t(fed.size()))) == 0, "decode");
        tokens.push_back(greedy(model, ctx.get(), -1));
        fed.assign(1, tokens.back());
    }
    expect(controller.stats().ffn_skipped == uint64_t(39 * max_skip), "skips");
    return tokens;
}

}  // namespace

int main(int argc, char ** argv) {
    require(argc == 2, "usage: test_threads MODEL");
    const Model                           model = load(argv[1]);
    std::vector<std::vector<llama_token>> alone(2), together(2);
    std::vector<std::thread>              threads;
    for (int i = 0; i < 2; ++i) {
        alone[size_t(i)] = generate(model, i, 1 + i);
    }
    for (int i = 0; i < 2; ++i) {
        threads.emplace_back([&, i] { together[size_t(i)] = generate(model, i, 1 + i); });
    }
    for (std::thread & thread : threads) {
        thread.join();
    }
    expect(together == alone, "the same tokens");
    return result();
}
