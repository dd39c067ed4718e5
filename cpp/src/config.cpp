#include "ffnskip/config.h"

#include "tensor_names.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <stdexcept>

namespace ffnskip {
namespace {

constexpr const char * k_policies[] = { "dense",    "ffn_skip",    "random",       // by Policy
                                        "channels", "skip_decode", "short_gpt" };  // which stands for ffn_skip
constexpr const char * k_regions[]  = { "any", "adaptive" };                       // by Region
constexpr const char * k_tensors[]  = { "ffn", "all" };                            // by Tensors
constexpr const char * k_reuses[]   = { "all", "full" };                           // by Reuse

constexpr double k_block_ratio   = 0.25;
constexpr double k_channel_ratio = 1.0 / 3.0;

[[noreturn]] void refuse(const std::string & message) {
    throw std::invalid_argument(message);
}

std::string range(int low, int high) {
    return "[" + std::to_string(low) + ", " + std::to_string(high) + "]";
}

// "0.9", not "0.900000"
std::string number(double value) {
    char text[32];
    std::snprintf(text, sizeof(text), "%g", value);
    return text;
}

template <typename Value, size_t n>
Value value_of(const char * const (&names)[n], const char * field, const std::string & name) {
    std::string known;
    for (size_t i = 0; i < n; ++i) {
        if (name == names[i]) {
            return Value(i);
        }
        known += (known.empty() ? "" : ", ") + std::string(names[i]);
    }
    refuse(std::string(field) + ": '" + name + "' is unknown; known are " + known);
}

// One eighth at either end, as far as the paper's Figure 2 shows for LLaMA-2.
int default_cold_layers(int n_layer) {
    return std::max(1, (n_layer + 4) / 8);
}

int count(const std::vector<uint8_t> & flags) {
    return std::accumulate(flags.begin(), flags.end(), 0);
}

// [n_layer] 1 for the layers of a list. `why_not(il)`: why a layer can't be in it; empty: it can.
template <typename WhyNot>
std::vector<uint8_t> fixed_set(const char * field, const std::optional<std::vector<int>> & layers, int n_layer,
                               WhyNot why_not) {
    std::vector<uint8_t> set(size_t(n_layer), 0);
    for (const int il : layers.value_or(std::vector<int>())) {
        if (il >= n_layer - 1) {
            refuse(std::string(field) + ": " + std::to_string(il) + " is out of range; a model of " +
                   std::to_string(n_layer) + " layers can skip " + range(0, n_layer - 2) +
                   " (the last layer always runs)");
        }
        if (const std::string why = why_not(il); !why.empty()) {
            refuse(std::string(field) + ": layer " + std::to_string(il) + " has no " + why);
        }
        set[size_t(il)] = 1;
    }
    return set;
}

// The threshold of each layer.
std::vector<float> thresholds(const Config & config, size_t n_layer) {
    if (!config.layer_thresholds) {
        return std::vector<float>(n_layer, float(config.sim_threshold));
    }
    if (config.layer_thresholds->size() != n_layer) {
        refuse("layer_thresholds: " + std::to_string(config.layer_thresholds->size()) + " for a model of " +
               std::to_string(n_layer) + " layers; one for each is needed");
    }
    return std::vector<float>(config.layer_thresholds->begin(), config.layer_thresholds->end());
}

// Where max_skip blocks beside those of `layers` are chosen from, and how many that is.
void set_candidates(Settings & out, const Config & config, const std::vector<uint8_t> & skippable) {
    const int n_layer = out.n_layer();
    if (out.cold_e > n_layer - 1) {
        refuse("cold_e: " + std::to_string(out.cold_e) + " is past " + std::to_string(n_layer - 1) +
               "; the last of the " + std::to_string(n_layer) + " layers always runs");
    }
    if (out.cold_s >= out.cold_e) {
        refuse("cold_s: " + std::to_string(out.cold_s) + " leaves no adaptive region below cold_e = " +
               std::to_string(out.cold_e) + " in a model of " + std::to_string(n_layer) + " layers");
    }
    const bool anywhere = config.policy == Policy::random && config.region == Region::any;
    const int  first    = anywhere ? 0 : out.cold_s;
    const int  last     = anywhere ? n_layer - 1 : out.cold_e;
    std::copy(skippable.begin() + first, skippable.begin() + last, out.candidate.begin() + first);

    // Algorithm 1 computes the FFN of the layer that trips, so one block of the region is never skipped.
    const int    n_free    = count(out.candidate) - out.n_always;
    const int    reachable = std::max(0, n_free - (config.policy == Policy::ffn_skip ? 1 : 0));
    const double ratio     = config.skip_ratio.value_or(k_block_ratio);
    const int    wanted    = int(std::lround(ratio * n_layer));
    if (!config.max_skip && wanted < out.n_always) {
        refuse("skip_ratio: " + number(ratio) + " asks for " + std::to_string(wanted) + " of " +
               std::to_string(n_layer) + " FFN blocks, fewer than the " + std::to_string(out.n_always) + " of layers");
    }
    out.max_skip = config.max_skip.value_or(wanted - out.n_always);
    if (out.max_skip <= reachable) {
        return;
    }
    const std::string most = "; policy '" + std::string(policy_name(config.policy)) + "' over layers [" +
                             std::to_string(first) + ", " + std::to_string(last) + ") can skip at most " +
                             std::to_string(reachable) + " of " + std::to_string(n_layer) + " FFN blocks" +
                             (out.n_always > 0 ? " beside the " + std::to_string(out.n_always) + " of layers" : "");
    if (config.max_skip) {
        refuse("max_skip: " + std::to_string(out.max_skip) + " is too many" + most);
    }
    refuse("skip_ratio: " + number(ratio) + " asks for " + std::to_string(wanted) + most + " (a ratio of " +
           number(double(reachable + out.n_always) / n_layer) + ")");
}

// The layers of the adaptive region that are checked.
void set_checks(Settings & out, const Config & config) {
    int since_last = config.check_stride - 1;  // the first layer is checked
    for (int il = out.cold_s; il < out.cold_e; ++il) {
        if (out.candidate[size_t(il)] && !out.always[size_t(il)] && ++since_last >= config.check_stride) {
            const float threshold   = out.threshold[size_t(il)];
            out.checked[size_t(il)] = uint8_t(!(config.layer_thresholds && std::isinf(threshold) && threshold > 0.0f));
            since_last              = 0;
        }
    }
    out.check_interval = config.check_interval;
}

// The inputs whose channels may be left out. No layer is cold where none is said to be.
void set_channels(Settings & out, const Config & config) {
    const int n_layer = out.n_layer();
    out.cold_s        = config.cold_s.value_or(0);
    out.cold_e        = config.cold_e.value_or(n_layer);
    if (out.cold_e > n_layer || out.cold_s >= out.cold_e) {
        refuse("cold_s, cold_e: [" + std::to_string(out.cold_s) + ", " + std::to_string(out.cold_e) +
               ") are no layers of a model of " + std::to_string(n_layer));
    }
    if (config.channel_thresholds) {
        out.channel_threshold.assign(config.channel_thresholds->begin(), config.channel_thresholds->end());
        if (int(out.channel_threshold.size()) != n_layer * k_input_kinds) {
            refuse("channel_thresholds: " + std::to_string(out.channel_threshold.size()) + " for a model of " +
                   std::to_string(n_layer) + " layers; " + std::to_string(k_input_kinds) + " for each are needed");
        }
    }
    out.channel_ratio = config.skip_ratio.value_or(k_channel_ratio);
    out.warm_up_index = std::max(out.warm_up_index, config.channel_thresholds ? 0 : k_channel_tokens);
    out.channels.assign(size_t(n_layer * k_input_kinds), 0);
    for (int i = out.cold_s * k_input_kinds; i < out.cold_e * k_input_kinds; ++i) {
        out.channels[size_t(i)] = config.channel_thresholds
                                      ? out.channel_threshold[size_t(i)] > 0.0f
                                      : out.channel_ratio > 0.0 && (is_of_ffn(i) || config.tensors == Tensors::all);
    }
}

// The layers that may be left out whole, and how many in the end.
void set_budget(Settings & out, const Config & config, const std::vector<uint8_t> & skippable,
                const std::vector<std::string> & no_attention) {
    const int n_layer = out.n_layer();
    if (out.cold_e > n_layer - 1 || out.cold_s >= out.cold_e) {
        refuse("cold_s, cold_e: of the layers [" + std::to_string(out.cold_s) + ", " + std::to_string(out.cold_e) +
               ") of a model of " + std::to_string(n_layer) + " some are to be left out, and the last always runs");
    }
    std::string why_not;
    for (int il = out.cold_s; il < out.cold_e; ++il) {
        const std::string & attention = no_attention[size_t(il)];
        out.candidate[size_t(il)]     = skippable[size_t(il)] && attention.empty();
        why_not                       = why_not.empty() ? attention : why_not;
    }
    if (count(out.candidate) == 0) {
        refuse("policy 'skip_decode': no layer of [" + std::to_string(out.cold_s) + ", " + std::to_string(out.cold_e) +
               ") can be left out whole" + (why_not.empty() ? "" : ", by attention: " + why_not));
    }
    out.attention = out.candidate;

    const int         n_most = count(out.candidate);
    const double      ratio  = config.skip_ratio.value_or(k_block_ratio);
    const int         wanted = config.min_layers ? n_layer - *config.min_layers : int(std::lround(2 * ratio * n_layer));
    const std::string most   = "; policy 'skip_decode' can leave out at most " + std::to_string(n_most) + " of " +
                               std::to_string(n_layer) + " layers, of [" + std::to_string(out.cold_s) + ", " +
                               std::to_string(out.cold_e) + ")";
    if (config.min_layers && (wanted < 0 || wanted > n_most)) {
        refuse("min_layers: " + std::to_string(*config.min_layers) + " is outside " + range(n_layer - n_most, n_layer) +
               most);
    }
    if (wanted > n_most) {
        refuse("skip_ratio: " + number(ratio) + " asks for " + std::to_string(wanted) + " layers in the end" + most +
               " (a ratio of " + number(n_most / 2.0 / n_layer) + ")");
    }
    out.max_left_out  = wanted;
    out.budget_decay  = config.budget_decay;
    out.warm_up_index = 0;  // the first tokens leave next to nothing out
}

}  // namespace

int Settings::n_left_out(int32_t position) const {
    const double fallen = std::min(1.0, double(position) / double(budget_decay));
    return int(std::lround(fallen * max_left_out));
}

bool Settings::may_skip(int32_t position, int32_t n_prompt) const {
    if (policy == Policy::skip_decode) {
        return position >= n_prompt && n_left_out(position) > 0;
    }
    return skips_anything() && (every_row || position - n_prompt >= warm_up_index);
}

const char * policy_name(Policy policy) {
    return k_policies[size_t(policy)];
}

const char * region_name(Region region) {
    return k_regions[size_t(region)];
}

Region region_from_name(const std::string & name) {
    return value_of<Region>(k_regions, "region", name);
}

const char * tensors_name(Tensors tensors) {
    return k_tensors[size_t(tensors)];
}

Tensors tensors_from_name(const std::string & name) {
    return value_of<Tensors>(k_tensors, "tensors", name);
}

Reuse reuse_from_name(const std::string & name) {
    return value_of<Reuse>(k_reuses, "reuse", name);
}

void set_policy(Config & config, const std::string & name) {
    const auto need = [](auto & list) {
        if (!list) {
            list.emplace();
        }
    };
    if (name == "short_gpt") {
        config.policy   = Policy::ffn_skip;
        config.max_skip = 0;
        need(config.layers);
        const bool named = config.attention_layers && !config.attention_layers->empty();
        if (named && config.attention_layers != config.layers) {
            refuse("attention_layers: policy 'short_gpt' leaves out whole layers, those of `layers`; leave it out");
        }
        config.attention_layers = config.layers;
        config.every_row        = true;
    } else if (name == "fixed" || name == "fixed_plus_ffn_skip") {
        config.policy   = Policy::ffn_skip;
        config.max_skip = name == "fixed" ? 0 : config.max_skip;
        need(config.layers);
    } else if (name == "ffn_skip_per_layer") {
        config.policy = Policy::ffn_skip;
        need(config.layer_thresholds);
    } else if (name == "random_adaptive_region") {
        config.policy = Policy::random;
        config.region = Region::adaptive;
    } else {
        config.policy = value_of<Policy>(k_policies, "policy", name);
    }
}

bool is_short_gpt(const Config & config) {
    return config.policy == Policy::ffn_skip && config.max_skip == 0 && config.every_row && config.layers &&
           config.layers == config.attention_layers;
}

void Config::validate() const {
    const auto at_least = [](int least, const char * field, std::optional<int> value, const char * what) {
        if (value && *value < least) {
            refuse(std::string(field) + ": " + std::to_string(*value) + what);
        }
    };
    at_least(0, "warm_up_index", warm_up_index, " is negative; it counts generated tokens, 0 or more");
    at_least(0, "max_skip", max_skip, " is negative; it counts FFN blocks, 0 or more");
    at_least(0, "cold_s", cold_s, " is negative; it counts layers, 0 or more");
    at_least(1, "check_stride", check_stride, " is no distance between checked layers; 1 or more");
    at_least(1, "min_layers", min_layers, " is no number of layers that run; 1 or more");
    at_least(1, "budget_decay", budget_decay, " is no number of positions over which layers fall; 1 or more");
    at_least(1, "check_interval", check_interval, " is no distance between checked tokens; 1 or more");
    if (std::isnan(sim_threshold)) {
        refuse("sim_threshold: nan is not a similarity; give a number, above 1 to never trip");
    }
    if (skip_ratio && !(*skip_ratio >= 0.0 && *skip_ratio <= 1.0)) {
        refuse("skip_ratio: " + number(*skip_ratio) + " is outside [0, 1]");
    }
    if (cold_s && cold_e && *cold_s >= *cold_e) {
        refuse("cold_s: " + std::to_string(*cold_s) + " must be below cold_e = " + std::to_string(*cold_e));
    }
    if (policy != Policy::ffn_skip && policy != Policy::channels && layers) {
        refuse("layers: only policies 'ffn_skip' and 'channels' take layers, not '" + std::string(policy_name(policy)) +
               "'");
    }
    if (policy != Policy::ffn_skip && layer_thresholds) {
        refuse("layer_thresholds: only policy 'ffn_skip' takes them, not '" + std::string(policy_name(policy)) + "'");
    }
    if (policy != Policy::channels && channel_thresholds) {
        refuse("channel_thresholds: only policy 'channels' takes them, not '" + std::string(policy_name(policy)) + "'");
    }
    if (policy != Policy::channels && tensors != Tensors::ffn) {
        refuse("tensors: only policy 'channels' takes '" + std::string(tensors_name(tensors)) + "', not '" +
               policy_name(policy) + "'");
    }
    if (policy != Policy::skip_decode && min_layers) {
        refuse("min_layers: only policy 'skip_decode' takes it, not '" + std::string(policy_name(policy)) + "'");
    }
    if (policy != Policy::skip_decode && budget_decay != Config().budget_decay) {
        refuse("budget_decay: only policy 'skip_decode' takes it, not '" + std::string(policy_name(policy)) + "'");
    }
    if (policy == Policy::skip_decode && max_skip) {
        refuse("max_skip: " + std::to_string(*max_skip) +
               " blocks; policy 'skip_decode' leaves out whole layers, as min_layers and skip_ratio say");
    }
    if (policy == Policy::channels && max_skip.value_or(0) != 0) {
        refuse("max_skip: " + std::to_string(*max_skip) +
               " blocks; policy 'channels' leaves out whole blocks of `layers` alone");
    }
    if (policy == Policy::channels) {
        const auto no_use = [](const char * field, bool given, const char * whose) {
            if (given) {
                refuse(std::string(field) + ": policy 'channels' has no use for it; it is for policy '" + whose + "'");
            }
        };
        const Config usual;
        no_use("sim_threshold", sim_threshold != usual.sim_threshold, "ffn_skip");
        no_use("check_stride", check_stride != usual.check_stride, "ffn_skip");
        no_use("check_interval", check_interval != usual.check_interval, "ffn_skip");
        no_use("region", region != usual.region, "random");
        no_use("seed", seed != usual.seed, "random");
    }
    for (const double threshold : channel_thresholds.value_or(std::vector<double>())) {
        if (!(threshold >= 0.0 && std::isfinite(threshold))) {
            refuse("channel_thresholds: " + number(threshold) +
                   " is no threshold; 0, which leaves nothing out, or more");
        }
    }
    if (layers && layers->empty()) {
        refuse(is_short_gpt(*this) ? "layers: policy 'short_gpt' leaves out these, and none are named"
                                   : "layers: the list is empty; name some, or leave it out");
    }
    for (const int il : layers.value_or(std::vector<int>())) {
        at_least(0, "layers", il, " is negative; the first layer is 0");
    }
    if (policy == Policy::skip_decode && attention_layers) {
        refuse("attention_layers: policy 'skip_decode' leaves out whole layers, as min_layers and skip_ratio say");
    }
    if (policy == Policy::dense && attention_layers) {
        refuse("attention_layers: policy 'dense' leaves nothing out");
    }
    if (attention_layers && attention_layers->empty()) {
        refuse("attention_layers: the list is empty; name some, or leave it out");
    }
    for (const int il : attention_layers.value_or(std::vector<int>())) {
        at_least(0, "attention_layers", il, " is negative; the first layer is 0");
    }
    if (every_row && !(policy == Policy::channels || (policy == Policy::ffn_skip && max_skip == 0))) {
        refuse("every_row: policy '" + std::string(policy_name(policy)) + "' chooses " +
               (policy == Policy::dense ? "nothing" : "for each token") +
               "; only 'ffn_skip' with max_skip 0 and 'channels' leave blocks out of every row");
    }
    if (every_row && !layers && !attention_layers) {
        refuse("every_row: neither layers nor attention_layers say what is left out");
    }
    if (!layer_thresholds) {
        return;
    }
    if (layer_thresholds->empty()) {
        refuse("layer_thresholds: the list is empty; name one for each layer, or leave it out");
    }
    if (layers && max_skip == 0) {
        refuse("layer_thresholds: nothing is checked where max_skip is 0");
    }
    if (std::any_of(layer_thresholds->begin(), layer_thresholds->end(), [](double t) { return std::isnan(t); })) {
        refuse("layer_thresholds: nan is not a similarity; give a number, infinite where a layer is not checked");
    }
}

Settings resolve(const Config & config, const std::vector<uint8_t> & skippable,
                 const std::vector<std::string> & no_attention) {
    config.validate();

    const int n_layer = int(skippable.size());
    const int n_cold  = default_cold_layers(n_layer);

    Settings out;
    out.policy        = config.policy;
    out.warm_up_index = config.warm_up_index;
    out.seed          = config.seed;
    out.cold_s        = config.cold_s.value_or(n_cold);
    out.cold_e        = config.cold_e.value_or(n_layer - n_cold);
    out.threshold     = thresholds(config, skippable.size());
    out.candidate.assign(skippable.size(), 0);
    out.always.assign(skippable.size(), 0);
    out.attention.assign(skippable.size(), 0);
    out.checked.assign(skippable.size(), 0);
    if (config.policy == Policy::dense) {
        return out;
    }
    out.always    = fixed_set("layers", config.layers, n_layer, [&](int il) -> std::string {
        return skippable[size_t(il)] ? "" : "FFN block that can be skipped";
    });
    out.attention = fixed_set("attention_layers", config.attention_layers, n_layer, [&](int il) -> std::string {
        const std::string & why = no_attention[size_t(il)];
        return why.empty() ? "" : "attention that can be left out: " + why;
    });
    out.n_always  = count(out.always);
    out.candidate = out.always;
    out.every_row = config.every_row;
    if (config.policy == Policy::channels) {
        set_channels(out, config);
        return out;
    }
    if (config.policy == Policy::skip_decode) {
        set_budget(out, config, skippable, no_attention);
        return out;
    }
    if ((config.layers || config.attention_layers) && config.max_skip == 0) {
        return out;
    }
    set_candidates(out, config, skippable);
    if (config.policy == Policy::ffn_skip && out.max_skip > 0) {
        set_checks(out, config);
    }
    return out;
}

}  // namespace ffnskip
