// Property: policies choose as FFN-SkipLLM says, without a model. Expected sets are written out by hand.
#include "expect.h"
#include "ffnskip/config.h"
#include "policy.h"

#include <cmath>
#include <map>
#include <string>
#include <vector>

using namespace ffnskip;

namespace {

const std::vector<uint8_t> k_sixteen(16, 1);

std::vector<int> skipped(const TokenState & token) {
    std::vector<int> out;
    for (int il = 0; il < 16; ++il) {
        if (token.skips(il)) {
            out.push_back(il);
        }
    }
    return out;
}

// Walks the layers as the controller does; `similarity(il)` is what a check at layer il yields.
std::vector<int> run(const Settings & settings, const std::function<float(int)> & similarity) {
    TokenState token;
    token.begin(settings, 7, 42);
    for (int il = 0; il < settings.n_layer(); ++il) {
        if (!token.skips(il) && token.checks(il)) {
            token.observe(settings, il, similarity(il));
        }
    }
    return skipped(token);
}

Settings ffn_skip(float threshold, int max_skip) {
    Config config;
    config.sim_threshold = threshold;
    config.max_skip      = max_skip;
    return resolve(config, k_sixteen);
}

void algorithm_1() {
    const Settings settings = ffn_skip(0.9f, 4);  // adaptive region [2, 14)
    expect(settings.cold_s == 2 && settings.cold_e == 14, "one eighth is cold at either end");
    expect(run(settings, [](int) { return 0.95f; }) == std::vector<int>({ 3, 4, 5, 6 }), "the first adaptive layer trips");
    expect(run(settings, [](int il) { return il == 8 ? 0.9f : 0.5f; }) == std::vector<int>({ 9, 10, 11, 12 }),
           "the threshold itself trips");
    expect(run(settings, [](int il) { return il == 12 ? 1.0f : 0.5f; }) == std::vector<int>({ 13 }),
           "nothing is skipped past cold_e");
    expect(run(settings, [](int) { return 0.89f; }).empty(), "below the threshold nothing is skipped");
    expect(run(settings, [](int) { return std::nanf(""); }).empty(), "NaN never trips");
    expect(run(ffn_skip(1.5f, 4), [](int) { return 1.0f; }).empty(), "a threshold above 1 never trips");
}

void layers_without_ffn_do_not_count() {
    std::vector<uint8_t> skippable = k_sixteen;
    skippable[4] = 0;
    Config config;
    config.max_skip = 3;
    expect(run(resolve(config, skippable), [](int) { return 1.0f; }) == std::vector<int>({ 3, 5, 6 }),
           "max_skip counts FFN blocks, not layers");
}

void random_sets() {
    Config config;
    config.policy   = Policy::random_adaptive_region;
    config.max_skip = 4;
    const Settings settings = resolve(config, k_sixteen);

    std::map<int, int> counts;
    constexpr int      n_tokens = 6000;
    for (int position = 0; position < n_tokens; ++position) {
        TokenState token, again;
        token.begin(settings, position, 5);
        again.begin(settings, position, 5);
        expect(skipped(token) == skipped(again), "the same token has the same set");
        expect(skipped(token).size() == 4, "as many as asked for");
        for (const int il : skipped(token)) {
            ++counts[il];
        }
    }
    expect(counts.begin()->first == 2 && counts.rbegin()->first == 13, "the adaptive region, all of it");
    for (const auto & [il, count] : counts) {
        // 4 of 12: mean 2000, standard deviation 37
        expect(std::abs(count - n_tokens / 3) < 200, "every layer as often as another");
    }
}

void refusals() {
    Config config;
    config.sim_threshold = std::nanf("");
    expect_refused([&] { config.validate(); }, "sim_threshold: nan");
    config        = Config();
    config.cold_s = 9;
    config.cold_e = 9;
    expect_refused([&] { config.validate(); }, "cold_s: 9 must be below cold_e = 9");
    config            = Config();
    config.skip_ratio = 1.25f;
    expect_refused([&] { config.validate(); }, "skip_ratio: 1.25 is outside [0, 1]");
    config          = Config();
    config.max_skip = 12;
    expect_refused([&] { resolve(config, k_sixteen); }, "at most 11 of 16");
    config        = Config();
    config.policy = Policy::fixed;
    config.layers = { 15 };
    expect_refused([&] { resolve(config, k_sixteen); }, "layers: 15 is out of range");
    expect_refused([&] { policy_from_name("greedy"); }, "'greedy' is unknown");
}

}  // namespace

int main() {
    algorithm_1();
    layers_without_ffn_do_not_count();
    random_sets();
    refusals();
    return result();
}
