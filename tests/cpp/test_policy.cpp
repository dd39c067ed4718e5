// Property: policies choose as FFN-SkipLLM says, without a model. Expected sets are written out by hand.
#include "expect.h"
#include "ffnskip/config.h"
#include "policy.h"

#include <cmath>
#include <limits>
#include <map>
#include <string>
#include <vector>

using namespace ffnskip;

namespace {

const std::vector<uint8_t>     k_sixteen(16, 1);
const std::vector<std::string> k_attends(16);  // all of which can be left out

std::vector<int> skipped(const TokenState & token) {
    std::vector<int> out;
    for (int il = 0; il < 16; ++il) {
        if (token.skips(il, BlockKind::ffn)) {
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
        if (!token.skips(il, BlockKind::ffn) && token.checks(il)) {
            token.observe(settings, il, similarity(il));
        }
    }
    return skipped(token);
}

Settings ffn_skip(float threshold, int max_skip) {
    Config config;
    config.sim_threshold = threshold;
    config.max_skip      = max_skip;
    return resolve(config, k_sixteen, k_attends);
}

void algorithm_1() {
    const Settings settings = ffn_skip(0.9f, 4);  // adaptive region [2, 14)
    expect(settings.cold_s == 2 && settings.cold_e == 14, "one eighth is cold at either end");
    expect(run(settings, [](int) { return 0.95f; }) == std::vector<int>({ 3, 4, 5, 6 }),
           "the first adaptive layer trips");
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
    skippable[4]                   = 0;
    Config config;
    config.max_skip = 3;
    expect(run(resolve(config, skippable, k_attends), [](int) { return 1.0f; }) == std::vector<int>({ 3, 5, 6 }),
           "max_skip counts FFN blocks, not layers");
}

void random_sets() {
    Config config;
    config.policy           = Policy::random;
    config.region           = Region::adaptive;
    config.max_skip         = 4;
    const Settings settings = resolve(config, k_sixteen, k_attends);

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

void thresholds_of_layers() {
    constexpr double inf = std::numeric_limits<double>::infinity();
    Config           config;
    config.layer_thresholds   = { 0, 0, inf, 0.9, 0.5, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0, 0 };
    config.max_skip           = 3;
    const Settings   settings = resolve(config, k_sixteen, k_attends);
    std::vector<int> asked;
    const auto       run_noting = [&](float similarity) {
        asked.clear();
        return run(settings, [&](int il) { return asked.push_back(il), similarity; });
    };
    expect(run_noting(0.6f) == std::vector<int>({ 5, 6, 7 }), "a layer trips at its own threshold");
    expect(asked == std::vector<int>({ 3, 4 }), "an infinite threshold is not checked, nor is anything after the trip");
    expect(run_noting(0.95f) == std::vector<int>({ 4, 5, 6 }), "layers below cold_s do not trip");
    expect(run_noting(0.4f).empty() && asked.size() == 11, "the whole region but one");
}

void fixed_set_and_algorithm_1() {
    Config config;
    config.sim_threshold = 0.9;
    config.cold_s        = 3;
    config.cold_e        = 9;
    config.layers        = std::vector<int>{ 1, 4, 6 };
    config.max_skip      = 2;
    std::vector<int> asked;
    const auto       run_noting = [&](float similarity) {
        asked.clear();
        return run(resolve(config, k_sixteen, k_attends), [&](int il) { return asked.push_back(il), similarity; });
    };
    expect(run_noting(0.0f) == std::vector<int>({ 1, 4, 6 }), "the set is always skipped, in and out of the region");
    expect(asked == std::vector<int>({ 3, 5, 7, 8 }), "what is computed in the region is checked");
    expect(run_noting(0.9f) == std::vector<int>({ 1, 4, 5, 6, 7 }), "max_skip counts what is not in the set");
    config.check_stride = 3;
    expect(run_noting(0.0f).size() == 3 && asked == std::vector<int>({ 3, 8 }), "every third of the checked layers");
    config.max_skip   = std::nullopt;
    config.skip_ratio = 0.25;
    expect(resolve(config, k_sixteen, k_attends).max_skip == 1, "skip_ratio counts the set");
    config.skip_ratio = 0.1;
    expect_refused([&] { resolve(config, k_sixteen, k_attends); },
                   "asks for 2 of 16 FFN blocks, fewer than the 3 of layers");
    config.max_skip = 4;
    expect_refused([&] { resolve(config, k_sixteen, k_attends); }, "at most 3 of 16 FFN blocks beside the 3 of layers");
    config.max_skip = 0;
    expect(resolve(config, k_sixteen, k_attends).skips_anything() && run_noting(1.0f) == std::vector<int>({ 1, 4, 6 }),
           "the set alone");
    expect(asked.empty(), "nothing is checked where no more can be skipped");
    config.cold_e = 99;
    expect(run_noting(1.0f).size() == 3, "nor does the region matter");
}

void followers() {
    Config config;
    config.cold_s             = 3;
    config.cold_e             = 9;
    config.layers             = std::vector<int>{ 5 };
    config.max_skip           = 2;
    const Settings   settings = resolve(config, k_sixteen, k_attends);
    TokenState       token;
    std::vector<int> skipped;
    const auto       follow = [&](int trip_layer) {
        token.follow(settings, trip_layer);
        skipped.clear();
        for (int il = 0; il < 16; ++il) {
            expect(!token.checks(il), "nothing is checked");
            if (token.skips(il, BlockKind::ffn)) {
                skipped.push_back(il);
            }
        }
        return skipped;
    };
    token.begin(settings, 0, 0);
    expect(follow(-1) == std::vector<int>({ 5 }), "the other has not tripped: what is always skipped");
    expect(follow(4) == std::vector<int>({ 5, 6, 7 }), "it has: what that skips");
    expect(follow(4) == std::vector<int>({ 5, 6, 7 }), "told again");
    expect(!token.never_tripped(), "it could not");
}

// Attention blocks are given as they are, beside whatever the policy does with FFNs.
void attention() {
    const auto left_out = [](const TokenState & token) {
        std::vector<int> out;
        for (int il = 0; il < 16; ++il) {
            if (token.skips(il, BlockKind::attention)) {
                out.push_back(il);
            }
        }
        return out;
    };
    const std::vector<int> some = { 2, 9 };
    Config                 config;
    config.attention_layers = some;
    config.max_skip         = 0;
    TokenState token;
    token.begin(resolve(config, k_sixteen, k_attends), 0, 0);
    expect(left_out(token) == some && skipped(token).empty(), "attention alone");
    expect(token.skips_any() && !token.leaves_gaps(), "keys and values are written");
    token.begin_full(resolve(config, k_sixteen, k_attends));
    expect(!token.skips_any() && !token.may_skip(), "not of a prompt");

    config.layers    = std::vector<int>{ 5 };
    config.every_row = true;
    token.begin_full(resolve(config, k_sixteen, k_attends));
    expect(left_out(token) == some && skipped(token) == std::vector<int>{ 5 }, "of every row");
    expect(token.may_skip() && token.leaves_gaps(), "keys and values are not written");
    config.attention_layers.reset();
    token.begin_full(resolve(config, k_sixteen, k_attends));
    expect(token.skips_any() && !token.leaves_gaps(), "FFNs leave no gaps");

    const auto key   = [](const Config & of) { return key_of(resolve(of, k_sixteen, k_attends)); };
    Config     other = config;
    other.every_row  = false;
    expect(key(other) != key(config), "every row or not leaves another memory");
    other.attention_layers  = some;
    const uint64_t with_two = key(other);
    other.attention_layers  = std::vector<int>{ 2 };
    expect(key(other) != with_two, "so does other attention");

    config                           = Config();
    config.attention_layers          = std::vector<int>{ 3 };
    std::vector<std::string> attends = k_attends;
    attends[3]                       = "it is no standard attention";
    expect_refused([&] { resolve(config, k_sixteen, attends); },
                   "attention_layers: layer 3 has no attention that can be left out: it is no standard attention");
    config.attention_layers = std::vector<int>{ 15 };
    expect_refused([&] { resolve(config, k_sixteen, k_attends); }, "attention_layers: 15 is out of range");
    config.attention_layers = std::vector<int>();
    expect_refused([&] { config.validate(); }, "attention_layers: the list is empty");
    config.attention_layers = std::vector<int>{ -1 };
    expect_refused([&] { config.validate(); }, "attention_layers: -1 is negative");
    config.attention_layers = some;
    config.policy           = Policy::dense;
    expect_refused([&] { config.validate(); }, "attention_layers: policy 'dense' leaves nothing out");
    config.policy    = Policy::random;
    config.every_row = true;
    expect_refused([&] { config.validate(); }, "every_row: policy 'random' chooses for each token");
    config.policy = Policy::ffn_skip;
    expect_refused([&] { config.validate(); }, "every_row: policy 'ffn_skip' chooses for each token");
    config.max_skip = 0;
    config.validate();
    config.attention_layers.reset();
    expect_refused([&] { config.validate(); }, "every_row: neither layers nor attention_layers");
}

void short_gpt() {
    Config config;
    set_policy(config, "short_gpt");
    expect_refused([&] { config.validate(); }, "layers: policy 'short_gpt' leaves out these, and none are named");
    config.layers = std::vector<int>{ 3, 4 };
    set_policy(config, "short_gpt");
    config.validate();
    expect(config.policy == Policy::ffn_skip && config.max_skip == 0 && config.every_row, "a fixed set of every row");
    expect(config.attention_layers == config.layers && is_short_gpt(config), "of whole layers");
    config.attention_layers = std::vector<int>{ 3 };
    expect(!is_short_gpt(config), "or not whole ones");
}

void skip_decode() {
    Config config;
    config.policy       = Policy::skip_decode;
    config.skip_ratio   = 0.2;
    const auto resolved = [&] { return resolve(config, k_sixteen, k_attends); };
    expect(resolved().max_left_out == 6 && resolved().warm_up_index == 0, "twice the ratio in the end");
    config.min_layers = 11;
    expect(resolved().max_left_out == 5, "min_layers");
    config.budget_decay     = 100;
    const Settings settings = resolved();
    expect(settings.n_left_out(0) == 0 && settings.n_left_out(9) == 0 && settings.n_left_out(10) == 1, "rounded");
    expect(settings.n_left_out(99) == 5 && settings.n_left_out(100) == 5 && settings.n_left_out(9999) == 5, "the end");
    TokenState token;
    token.begin_without(settings, 3);
    for (int il = 0; il < 16; ++il) {
        const bool gone = il >= 2 && il < 5;
        expect(token.skips(il, BlockKind::ffn) == gone && token.skips(il, BlockKind::attention) == gone,
               "whole layers");
    }
    expect(token.leaves_gaps() && token.may_skip(), "keys and values too");
    token.begin_without(settings, 0);
    expect(!token.leaves_gaps() && !token.may_skip(), "none");

    std::vector<std::string> attends = k_attends;
    attends[3]                       = "it is no standard attention";
    token.begin_without(resolve(config, k_sixteen, attends), 2);
    expect(token.skips(2, BlockKind::ffn) && !token.skips(3, BlockKind::ffn) && token.skips(4, BlockKind::ffn),
           "a layer that can't be left out is passed over");
    expect_refused([&] { resolve(config, k_sixteen, std::vector<std::string>(16, "it is linear")); },
                   "no layer of [2, 14) can be left out whole, by attention: it is linear");
    config.min_layers = 3;
    expect_refused(resolved,
                   "min_layers: 3 is outside [4, 16]; policy 'skip_decode' can leave out at most 12 of 16 layers");
    config.min_layers.reset();
    config.skip_ratio = 0.5;
    expect_refused(resolved, "skip_ratio: 0.5 asks for 16 layers in the end");
    config.budget_decay = 0;
    expect_refused([&] { config.validate(); }, "budget_decay: 0");
    config.budget_decay = 1;
    config.max_skip     = 1;
    expect_refused([&] { config.validate(); }, "max_skip: 1 blocks; policy 'skip_decode' leaves out whole layers");
    config.max_skip.reset();
    config.policy     = Policy::random;
    config.min_layers = 8;
    expect_refused([&] { config.validate(); }, "min_layers: only policy 'skip_decode' takes it, not 'random'");
}

void refusals() {
    Config config;
    config.sim_threshold = std::nan("");
    expect_refused([&] { config.validate(); }, "sim_threshold: nan");
    config        = Config();
    config.cold_s = 9;
    config.cold_e = 9;
    expect_refused([&] { config.validate(); }, "cold_s: 9 must be below cold_e = 9");
    config            = Config();
    config.skip_ratio = 1.25;
    expect_refused([&] { config.validate(); }, "skip_ratio: 1.25 is outside [0, 1]");
    config          = Config();
    config.max_skip = 12;
    expect_refused([&] { resolve(config, k_sixteen, k_attends); }, "at most 11 of 16");
    config        = Config();
    config.layers = std::vector<int>{ 15 };
    expect_refused([&] { resolve(config, k_sixteen, k_attends); }, "layers: 15 is out of range");
    config.layers = std::vector<int>{ 2, -1 };
    expect_refused([&] { config.validate(); }, "layers: -1 is negative");
    config              = Config();
    config.check_stride = 0;
    expect_refused([&] { config.validate(); }, "check_stride: 0");
    config                = Config();
    config.check_interval = 0;
    expect_refused([&] { config.validate(); }, "check_interval: 0");
    config                  = Config();
    config.layer_thresholds = { 0.5, 0.5 };
    expect_refused([&] { resolve(config, k_sixteen, k_attends); }, "layer_thresholds: 2 for a model of 16 layers");
    config.layer_thresholds->back() = std::nan("");
    expect_refused([&] { config.validate(); }, "layer_thresholds: nan");
    config.layer_thresholds->back() = 0.5;
    config.layers                   = std::vector<int>{ 3 };
    config.max_skip                 = 0;
    expect_refused([&] { config.validate(); }, "layer_thresholds: nothing is checked where max_skip is 0");
    config.policy = Policy::random;
    expect_refused([&] { config.validate(); }, "only policies 'ffn_skip' and 'channels' take layers, not 'random'");
    config.layers.reset();
    expect_refused([&] { config.validate(); }, "only policy 'ffn_skip' takes them, not 'random'");
    expect_refused([&] { set_policy(config, "greedy"); },
                   "policy: 'greedy' is unknown; known are dense, ffn_skip, random");
    expect_refused([] { region_from_name("cold"); }, "region: 'cold' is unknown; known are any, adaptive");
}

void channels() {
    Config config;
    config.policy = Policy::channels;
    expect(resolve(config, k_sixteen, k_attends).leaves_channels_out(), "a third, where nothing is said");
    config.skip_ratio = 0.0;
    expect(!resolve(config, k_sixteen, k_attends).skips_anything(), "nothing is to be left out");
    config.check_stride = 2;
    expect_refused([&] { config.validate(); }, "check_stride: policy 'channels' has no use for it");
    config               = Config();
    config.policy        = Policy::channels;
    config.sim_threshold = 0.8;
    expect_refused([&] { config.validate(); }, "sim_threshold: policy 'channels' has no use for it");
}

void old_names() {
    const auto named = [](const char * name) {
        Config config;
        set_policy(config, name);
        return config;
    };
    Config fixed = named("fixed");
    expect_refused([&] { fixed.validate(); }, "layers: the list is empty; name some, or leave it out");
    fixed.layers = std::vector<int>{ 3 };
    fixed.validate();
    expect(fixed.policy == Policy::ffn_skip && fixed.max_skip == 0, "fixed");

    Config both = named("fixed_plus_ffn_skip");
    expect_refused([&] { both.validate(); }, "layers: the list is empty; name some, or leave it out");
    both.layers = std::vector<int>{ 3 };
    both.validate();
    expect(both.policy == Policy::ffn_skip && !both.max_skip, "fixed_plus_ffn_skip");

    Config per_layer = named("ffn_skip_per_layer");
    expect_refused([&] { per_layer.validate(); },
                   "layer_thresholds: the list is empty; name one for each layer, or leave it out");
    expect(per_layer.policy == Policy::ffn_skip, "ffn_skip_per_layer");

    const Config random = named("random_adaptive_region");
    expect(random.policy == Policy::random && random.region == Region::adaptive, "random_adaptive_region");
}

}  // namespace

int main() {
    algorithm_1();
    layers_without_ffn_do_not_count();
    random_sets();
    thresholds_of_layers();
    fixed_set_and_algorithm_1();
    followers();
    skip_decode();
    attention();
    short_gpt();
    refusals();
    channels();
    old_names();
    return result();
}
