#include "ffnskip/config.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>
#include <utility>

namespace ffnskip {
namespace {

constexpr std::pair<Policy, const char *> k_policies[] = {
    { Policy::dense, "dense" },
    { Policy::ffn_skip, "ffn_skip" },
    { Policy::ffn_skip_per_layer, "ffn_skip_per_layer" },
    { Policy::random, "random" },
    { Policy::random_adaptive_region, "random_adaptive_region" },
    { Policy::fixed, "fixed" },
    { Policy::fixed_plus_ffn_skip, "fixed_plus_ffn_skip" },
};

[[noreturn]] void refuse(const std::string & message) {
    throw std::invalid_argument(message);
}

std::string range(int low, int high) {
    return "[" + std::to_string(low) + ", " + std::to_string(high) + "]";
}

// "0.9", not "0.900000"
std::string number(float value) {
    std::string text = std::to_string(value);
    if (text.find('.') != std::string::npos) {
        text.erase(text.find_last_not_of('0') + 1);
        if (text.back() == '.') {
            text.pop_back();
        }
    }
    return text;
}

// One eighth at either end, as far as the paper's Figure 2 shows for LLaMA-2.
int default_cold_layers(int n_layer) {
    return std::max(1, (n_layer + 4) / 8);
}

int count(const std::vector<uint8_t> & flags) {
    return std::accumulate(flags.begin(), flags.end(), 0);
}

// [n_layer] 1 for the layers that are always skipped.
std::vector<uint8_t> fixed_set(const Config & config, const std::vector<uint8_t> & skippable) {
    const int            n_layer = int(skippable.size());
    std::vector<uint8_t> set(skippable.size(), 0);
    for (const int il : config.layers) {
        if (il < 0 || il >= n_layer - 1) {
            refuse("layers: " + std::to_string(il) + " is out of range; a model of " + std::to_string(n_layer) +
                   " layers can skip " + range(0, n_layer - 2) + " (the last layer always runs)");
        }
        if (!skippable[size_t(il)]) {
            refuse("layers: layer " + std::to_string(il) + " has no FFN block that can be skipped");
        }
        set[size_t(il)] = 1;
    }
    return set;
}

// The adaptive region, with its checks.
void set_up_checks(Settings & out, const Config & config) {
    const bool per_layer  = config.policy == Policy::ffn_skip_per_layer;
    int        since_last = config.check_stride - 1;  // the first layer is checked
    for (int il = out.cold_s; il < out.cold_e; ++il) {
        if (out.candidate[size_t(il)] && !out.always[size_t(il)] && ++since_last >= config.check_stride) {
            const float threshold   = out.threshold[size_t(il)];
            out.checked[size_t(il)] = uint8_t(!(per_layer && std::isinf(threshold) && threshold > 0.0f));
            since_last              = 0;
        }
    }
}

}  // namespace

const char * policy_name(Policy policy) {
    for (const auto & [value, name] : k_policies) {
        if (value == policy) {
            return name;
        }
    }
    return "?";
}

Policy policy_from_name(const std::string & name) {
    std::string known;
    for (const auto & [value, text] : k_policies) {
        if (name == text) {
            return value;
        }
        known += (known.empty() ? "" : ", ") + std::string(text);
    }
    refuse("policy: '" + name + "' is unknown; known are " + known);
}

void Config::validate() const {
    if (std::isnan(sim_threshold)) {
        refuse("sim_threshold: nan is not a similarity; give a number, above 1 to never trip");
    }
    if (warm_up_index < 0) {
        refuse("warm_up_index: " + std::to_string(warm_up_index) + " is negative; it counts generated tokens, 0 or more");
    }
    if (!(skip_ratio >= 0.0f && skip_ratio <= 1.0f)) {
        refuse("skip_ratio: " + number(skip_ratio) + " is outside [0, 1]");
    }
    if (max_skip && *max_skip < 0) {
        refuse("max_skip: " + std::to_string(*max_skip) + " is negative; it counts FFN blocks, 0 or more");
    }
    if (cold_s && *cold_s < 0) {
        refuse("cold_s: " + std::to_string(*cold_s) + " is negative; it counts layers, 0 or more");
    }
    if (cold_s && cold_e && *cold_s >= *cold_e) {
        refuse("cold_s: " + std::to_string(*cold_s) + " must be below cold_e = " + std::to_string(*cold_e));
    }
    if (check_stride < 1) {
        refuse("check_stride: " + std::to_string(check_stride) + " is no distance between checked layers; 1 or more");
    }
    const std::string name = policy_name(policy);
    if (has_fixed_set(policy) && layers.empty()) {
        refuse("layers: policy '" + name + "' needs the layers whose FFN block it skips");
    }
    if (!has_fixed_set(policy) && !layers.empty()) {
        refuse("layers: only policies 'fixed' and 'fixed_plus_ffn_skip' take layers, not '" + name + "'");
    }
    const bool per_layer = policy == Policy::ffn_skip_per_layer;
    if (per_layer && layer_thresholds.empty()) {
        refuse("layer_thresholds: policy '" + name + "' needs a threshold for each layer");
    }
    if (!per_layer && !layer_thresholds.empty()) {
        refuse("layer_thresholds: only policy 'ffn_skip_per_layer' takes them, not '" + name + "'");
    }
    if (std::any_of(layer_thresholds.begin(), layer_thresholds.end(), [](float t) { return std::isnan(t); })) {
        refuse("layer_thresholds: nan is not a similarity; give a number, infinite where a layer is not checked");
    }
}

Settings resolve(const Config & config, const std::vector<uint8_t> & skippable) {
    config.validate();

    const int n_layer = int(skippable.size());
    const int n_cold  = default_cold_layers(n_layer);

    Settings out;
    out.policy        = config.policy;
    out.warm_up_index = config.warm_up_index;
    out.seed          = config.seed;
    out.cold_s        = config.cold_s.value_or(n_cold);
    out.cold_e        = config.cold_e.value_or(n_layer - n_cold);
    out.candidate.assign(skippable.size(), 0);
    out.always.assign(skippable.size(), 0);
    out.checked.assign(skippable.size(), 0);
    out.threshold.assign(skippable.size(), config.sim_threshold);

    if (config.policy == Policy::dense) {
        return out;
    }
    if (has_fixed_set(config.policy)) {
        out.always = out.candidate = fixed_set(config, skippable);
    }
    const int n_always = count(out.always);
    if (config.policy == Policy::fixed) {
        out.max_skip = n_always;
        return out;
    }
    if (config.policy == Policy::ffn_skip_per_layer) {
        if (int(config.layer_thresholds.size()) != n_layer) {
            refuse("layer_thresholds: " + std::to_string(config.layer_thresholds.size()) + " for a model of " +
                   std::to_string(n_layer) + " layers; one for each is needed");
        }
        out.threshold = config.layer_thresholds;
    }

    if (out.cold_e > n_layer - 1) {
        refuse("cold_e: " + std::to_string(out.cold_e) + " is past " + std::to_string(n_layer - 1) +
               "; the last of the " + std::to_string(n_layer) + " layers always runs");
    }
    if (out.cold_s >= out.cold_e) {
        refuse("cold_s: " + std::to_string(out.cold_s) + " leaves no adaptive region below cold_e = " +
               std::to_string(out.cold_e) + " in a model of " + std::to_string(n_layer) + " layers");
    }
    const bool anywhere = config.policy == Policy::random;
    const int  first    = anywhere ? 0 : out.cold_s;
    const int  last     = anywhere ? n_layer - 1 : out.cold_e;
    int        n_free   = 0;  // candidates that are not skipped anyway
    for (int il = first; il < last; ++il) {
        const bool free = skippable[size_t(il)] && !out.always[size_t(il)];
        n_free += free;
        out.candidate[size_t(il)] = uint8_t(free || out.always[size_t(il)]);
    }
    if (is_adaptive(config.policy)) {
        set_up_checks(out, config);
    }

    // Algorithm 1 computes the FFN of the layer that trips, so one block of the region is never skipped.
    const int reachable = std::max(0, n_free - (is_adaptive(config.policy) ? 1 : 0));
    const int wanted    = int(std::lround(double(config.skip_ratio) * n_layer));
    if (!config.max_skip && wanted < n_always) {
        refuse("skip_ratio: " + number(config.skip_ratio) + " asks for " + std::to_string(wanted) + " of " +
               std::to_string(n_layer) + " FFN blocks, fewer than the " + std::to_string(n_always) + " of layers");
    }
    out.max_skip = config.max_skip.value_or(wanted - n_always);
    if (out.max_skip > reachable) {
        const std::string most = "; policy '" + std::string(policy_name(config.policy)) + "' over layers [" +
                                 std::to_string(first) + ", " + std::to_string(last) + ") can skip at most " +
                                 std::to_string(reachable) + " of " + std::to_string(n_layer) + " FFN blocks" +
                                 (n_always > 0 ? " beside the " + std::to_string(n_always) + " of layers" : "");
        if (config.max_skip) {
            refuse("max_skip: " + std::to_string(out.max_skip) + " is too many" + most);
        }
        refuse("skip_ratio: " + number(config.skip_ratio) + " asks for " + std::to_string(wanted) + most +
               " (a ratio of " + number(float(reachable + n_always) / float(n_layer)) + ")");
    }
    return out;
}

}  // namespace ffnskip
