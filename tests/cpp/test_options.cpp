// Property: skip options mean what their help says, and bad values are refused by name.
#include "expect.h"
#include "ffnskip/options.h"

#include <cmath>
#include <utility>
#include <vector>

using namespace ffnskip;

namespace {

Config with(const std::string & name, const std::string & value) {
    Config config;
    set_option(config, name, value);
    return config;
}

void values() {
    expect(with("policy", "random").policy == Policy::random, "policy");
    expect(with("sim-threshold", "0.95").sim_threshold == 0.95, "sim-threshold");
    expect(with("sim-threshold", "-1").sim_threshold == -1.0, "negative sim-threshold");
    expect(with("cold-s", "3").cold_s == 3, "cold-s");
    expect(with("cold-e", "9").cold_e == 9, "cold-e");
    expect(with("warm-up", "0").warm_up_index == 0, "warm-up");
    expect(with("skip-ratio", "0.4").skip_ratio == 0.4, "skip-ratio");
    expect(with("max-skip", "5").max_skip == 5, "max-skip");
    expect(with("skip-seed", "18446744073709551615").seed == UINT64_MAX, "skip-seed");

    const std::vector<int> three = { 3 };
    const Config           fixed = with("skip-layers", "3,5-7");
    expect(fixed.policy == Policy::ffn_skip && fixed.layers == std::vector<int>{ 3, 5, 6, 7 }, "skip-layers");
    expect(fixed.max_skip == 0, "skip-layers: no others");
    Config beside = with("skip-layers", "3");
    set_option(beside, "max-skip", "2");
    expect(beside.layers == three && beside.max_skip == 2, "skip-layers, and others");

    Config both = with("policy", "fixed_plus_ffn_skip");
    set_option(both, "skip-layers", "3");
    expect(both.policy == Policy::ffn_skip && both.layers == three && !both.max_skip, "skip-layers with a policy");
    Config turned = with("skip-layers", "3");
    set_option(turned, "policy", "fixed_plus_ffn_skip");
    expect(turned.layers == three && !turned.max_skip, "the other way round");

    const Config per_layer = with("layer-thresholds", "0.5,-1,inf");
    expect(per_layer.policy == Policy::ffn_skip && per_layer.layer_thresholds->size() == 3, "layer-thresholds");
    expect(per_layer.layer_thresholds->at(1) == -1.0 && std::isinf(per_layer.layer_thresholds->at(2)), "their values");
    expect(with("region", "adaptive").region == Region::adaptive, "region");
    expect(with("check-stride", "2").check_stride == 2, "check-stride");
    expect(with("check-interval", "16").check_interval == 16, "check-interval");
    expect(with("min-layers", "9").min_layers == 9 && with("budget-decay", "64").budget_decay == 64, "skip_decode");

    Config none = fixed;
    set_option(none, "no-skip", "");
    none.validate();
    expect(none.policy == Policy::dense, "no-skip");
}

Config after(const std::vector<std::pair<std::string, std::string>> & given, Config config = Config()) {
    for (const auto & [name, value] : given) {
        set_option(config, name, value);
    }
    config.validate();
    return config;
}

// What one option implied does not outlive it.
void sequences() {
    const auto is_algorithm_1 = [](const Config & config) {
        return config.policy == Policy::ffn_skip && !config.layers && !config.layer_thresholds && !config.max_skip &&
               !config.attention_layers && !config.every_row;
    };
    expect(is_algorithm_1(after({ { "skip-layers", "3" }, { "no-skip", "" }, { "policy", "ffn_skip" } })),
           "skip-layers, no-skip");
    expect(is_algorithm_1(after({ { "skip-layers", "3" }, { "policy", "ffn_skip" } })), "skip-layers, policy");
    expect(is_algorithm_1(after({ { "layer-thresholds", "1,1" }, { "policy", "ffn_skip" } })), "thresholds, policy");
    expect(!after({ { "skip-layers", "3" }, { "policy", "random" } }).max_skip, "skip-layers, random");

    Config profile;  // with fixed layers
    profile.layers   = { 2, 4 };
    profile.max_skip = 0;
    expect(is_algorithm_1(after({ { "policy", "ffn_skip" } }, profile)), "fixed layers of a profile");
    const Config fixed = after({ { "policy", "fixed" } }, profile);
    expect(fixed.layers == profile.layers && fixed.max_skip == 0, "whose policy is named");
    const Config beside = after({ { "policy", "fixed_plus_ffn_skip" } }, profile);
    expect(beside.layers == profile.layers && !beside.max_skip, "with others beside them");

    const Config zero = after({ { "max-skip", "0" }, { "policy", "fixed_plus_ffn_skip" }, { "skip-layers", "3" } });
    expect(zero.layers && zero.max_skip == 0, "a max-skip of 0 that was given");
    expect(after({ { "max-skip", "2" }, { "policy", "ffn_skip" } }).max_skip == 2, "any other");

    expect(after({ { "policy", "random_adaptive_region" }, { "policy", "random" } }).region == Region::any, "region");
    expect(after({ { "policy", "random_adaptive_region" }, { "skip-layers", "3" }, { "policy", "random" } }).region ==
               Region::any,
           "region, long ago");
    expect(after({ { "region", "adaptive" }, { "policy", "random" } }).region == Region::adaptive,
           "a region that was given");

    const std::vector<int> three = { 3 }, two = { 4, 5 };
    const Config           layers = after({ { "policy", "short_gpt" }, { "skip-layers", "3" } });
    expect(is_short_gpt(layers) && layers.layers == three, "short_gpt, skip-layers");
    expect(is_short_gpt(after({ { "skip-layers", "3" }, { "policy", "short_gpt" } })), "skip-layers, short_gpt");
    expect(after({ { "skip-layers", "4,5" } }, layers).attention_layers == two,
           "other layers of a profile's short_gpt");
    expect(is_algorithm_1(after({ { "policy", "ffn_skip" } }, layers)), "short_gpt, policy");
    expect(!after({ { "policy", "random" } }, layers).every_row, "short_gpt, random");
    const Config both = after({ { "skip-layers", "3" }, { "attention-layers", "4,5" }, { "every-row", "" } });
    expect(both.layers == three && both.attention_layers == two && both.every_row, "layers, attention-layers");

    const Config dense = after({ { "policy", "random_adaptive_region" }, { "no-skip", "" } });
    expect(dense.policy == Policy::dense && dense.region == Region::any, "no-skip");

    const Config channels = after({ { "sim-threshold", "0.8" },
                                    { "check-stride", "2" },
                                    { "check-interval", "2" },
                                    { "tensors", "all" },
                                    { "skip-ratio", "0.2" },
                                    { "policy", "channels" } });
    expect(channels.sim_threshold == Config().sim_threshold && channels.check_stride == 1 &&
               channels.check_interval == 1,
           "what is said of blocks");
    expect(after({ { "policy", "skip_decode" }, { "budget-decay", "64" }, { "policy", "random" } }).budget_decay ==
               Config().budget_decay,
           "what is said of skip_decode");
    expect(channels.tensors == Tensors::all && channels.skip_ratio == 0.2, "what is said of channels");
}

void refused_values() {
    for (const char * text : { "", " 1", "1x", "-1", "1.5", "99999999999999999999" }) {
        for (const char * name : { "cold-s", "cold-e", "warm-up", "max-skip", "skip-seed" }) {
            expect_refused([&] { with(name, text); }, std::string(name) + ": '" + text + "' is not an integer >= 0");
        }
    }
    for (const char * text : { "", "high", "0.5 ", "0,5" }) {
        expect_refused([&] { with("sim-threshold", text); },
                       "sim-threshold: '" + std::string(text) + "' is not a number");
    }
    for (const char * text : { "", ",", "0.5,", "0.5,x", "0.5 0.6" }) {
        expect_refused([&] { with("layer-thresholds", text); }, "is not a number");
    }
    for (const char * text : { "", ",", "3,", "5-3", "a", "-2", "1--2", "3;4", "70000" }) {
        expect_refused([&] { with("skip-layers", text); }, "is not a list of layers such as 3,5-7");
    }
    expect_refused([] { with("policy", "greedy"); }, "'greedy' is unknown");
    expect_refused([] { with("treshold", "1"); }, "'treshold' is no skip option");
}

void names() {
    expect(environment_name("sim-threshold") == "FFNSKIP_SIM_THRESHOLD", "environment_name");
    for (const Option & option : options()) {
        expect(option.help[0] != '\0' && std::string(option.name).find('_') == std::string::npos, option.name);
    }
}

}  // namespace

int main() {
    values();
    sequences();
    refused_values();
    names();
    return result();
}
