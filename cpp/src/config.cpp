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
    { Policy::random, "random" },
    { Policy::random_adaptive_region, "random_adaptive_region" },
    { Policy::fixed, "fixed" },
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

// Layers the policy chooses from, before layers without an FFN block are taken out.
void allow(std::vector<uint8_t> & candidate, int first, int last) {
    std::fill(candidate.begin() + first, candidate.begin() + last, uint8_t(1));
}

void allow_fixed(std::vector<uint8_t> & candidate, const Config & config, const std::vector<uint8_t> & skippable) {
    const int n_layer = int(skippable.size());
    for (const int il : config.layers) {
        if (il < 0 || il >= n_layer - 1) {
            refuse("layers: " + std::to_string(il) + " is out of range; a model of " + std::to_string(n_layer) +
                   " layers can skip " + range(0, n_layer - 2) + " (the last layer always runs)");
        }
        if (!skippable[size_t(il)]) {
            refuse("layers: layer " + std::to_string(il) + " has no FFN block that can be skipped");
        }
        candidate[size_t(il)] = 1;
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
    if (policy == Policy::fixed && layers.empty()) {
        refuse("layers: policy 'fixed' needs the layers whose FFN block it skips");
    }
    if (policy != Policy::fixed && !layers.empty()) {
        refuse("layers: only policy 'fixed' takes layers, not '" + std::string(policy_name(policy)) + "'");
    }
}

Settings resolve(const Config & config, const std::vector<uint8_t> & skippable) {
    config.validate();

    const int n_layer = int(skippable.size());
    const int n_cold  = default_cold_layers(n_layer);

    Settings out;
    out.policy        = config.policy;
    out.sim_threshold = config.sim_threshold;
    out.warm_up_index = config.warm_up_index;
    out.seed          = config.seed;
    out.cold_s        = config.cold_s.value_or(n_cold);
    out.cold_e        = config.cold_e.value_or(n_layer - n_cold);
    out.candidate.assign(skippable.size(), 0);

    if (config.policy == Policy::dense) {
        return out;
    }
    if (config.policy == Policy::fixed) {
        allow_fixed(out.candidate, config, skippable);
        out.max_skip = std::accumulate(out.candidate.begin(), out.candidate.end(), 0);
        return out;
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
    allow(out.candidate, anywhere ? 0 : out.cold_s, anywhere ? n_layer - 1 : out.cold_e);
    for (size_t il = 0; il < skippable.size(); ++il) {
        out.candidate[il] = uint8_t(out.candidate[il] && skippable[il]);
    }

    // Algorithm 1 computes the FFN of the layer that trips, so one block of the region is never skipped.
    const int n_candidate = std::accumulate(out.candidate.begin(), out.candidate.end(), 0);
    const int reachable   = std::max(0, n_candidate - (config.policy == Policy::ffn_skip ? 1 : 0));

    out.max_skip = config.max_skip.value_or(int(std::lround(double(config.skip_ratio) * n_layer)));
    if (out.max_skip > reachable) {
        const std::string most = "; policy '" + std::string(policy_name(config.policy)) + "' over layers [" +
                                 std::to_string(anywhere ? 0 : out.cold_s) + ", " +
                                 std::to_string(anywhere ? n_layer - 1 : out.cold_e) + ") can skip at most " +
                                 std::to_string(reachable) + " of " + std::to_string(n_layer) + " FFN blocks";
        if (config.max_skip) {
            refuse("max_skip: " + std::to_string(out.max_skip) + " is too many" + most);
        }
        refuse("skip_ratio: " + number(config.skip_ratio) + " asks for " + std::to_string(out.max_skip) + most +
               " (a ratio of " + number(float(reachable) / float(n_layer)) + ")");
    }
    return out;
}

}  // namespace ffnskip
