// Property: contexts that decode in threads of their own keep to themselves. Run with the thread sanitizer too.
#include "clients/client.h"
#include "expect.h"
#include "ffnskip/ffnskip.h"

#include <iterator>
#include <thread>
#include <vector>

using namespace ffnskip;

namespace {

// `max_skip` FFN blocks of every token; or 0: input channels.
std::vector<llama_token> generate(const Model & model, int seq, int max_skip) {
    Controller           controller;
    llama_context_params params = exact_params();
    params.n_ctx                = 512;
    controller.attach(params);
    const Context ctx = make_context(model, params);
    controller.probe(ctx.get());
    Config config;
    config.warm_up_index = 0;
    config.max_skip      = max_skip;
    if (max_skip == 0) {
        config.policy = Policy::channels;
    } else {
        config.sim_threshold = -1.0f;
    }
    controller.set_config(config);

    std::vector<llama_token> fed = prompt_of(model, seq), tokens;
    for (int i = 0; i < 40; ++i) {
        expect(controller.decode(ctx.get(), llama_batch_get_one(fed.data(), int32_t(fed.size()))) == 0, "decode");
        tokens.push_back(greedy(model, ctx.get(), -1));
        fed.assign(1, tokens.back());
    }
    const Stats stats = controller.stats();
    expect(stats.ffn_skipped == uint64_t(39 * max_skip), "skips");
    expect((max_skip == 0) == (stats.bytes_left_out > 0), "leaves channels out");
    return tokens;
}

}  // namespace

int main(int argc, char ** argv) {
    require(argc == 2, "usage: test_threads MODEL");
    const Model model = load(argv[1]);
    // Two that skip blocks, and two that share the weights by channel.
    constexpr int                         k_max_skip[] = { 1, 2, 0, 0 };
    std::vector<std::vector<llama_token>> alone, together(std::size(k_max_skip));
    std::vector<std::thread>              threads;
    for (int i = 0; i < int(std::size(k_max_skip)); ++i) {
        alone.push_back(generate(model, i, k_max_skip[i]));
    }
    for (int i = 0; i < int(std::size(k_max_skip)); ++i) {
        threads.emplace_back([&, i] { together[size_t(i)] = generate(model, i, k_max_skip[i]); });
    }
    for (std::thread & thread : threads) {
        thread.join();
    }
    expect(together == alone, "the same tokens");
    return result();
}
