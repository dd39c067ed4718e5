#include "ffnskip/options.h"

#include "numbers.h"

#include <algorithm>
#include <cctype>
#include <stdexcept>
#include <utility>

namespace ffnskip {
namespace {

using Text = const std::string &;

[[noreturn]] void refuse(Text name, Text value, const char * wanted) {
    throw std::invalid_argument(name + ": '" + value + "' is not " + wanted);
}

// "a,b" is "a" and "b".
std::vector<std::string> parts(Text value) {
    std::vector<std::string> parts;
    for (size_t begin = 0; begin <= value.size();) {
        const size_t comma = std::min(value.find(',', begin), value.size());
        parts.push_back(value.substr(begin, comma - begin));
        begin = comma + 1;
    }
    return parts;
}

// ---- what a value means, by the type of the field that it is for ----

template <typename Number> Number number(Text name, Text value, const char * wanted) {
    if (const std::optional<Number> found = parse_number<Number>(value)) {
        return *found;
    }
    refuse(name, value, wanted);
}

void read(Text name, Text value, uint64_t & to) {
    to = number<uint64_t>(name, value, "an integer >= 0");
}

void read(Text name, Text value, int & to) {
    to = number<int>(name, value, "an integer >= 0");
    if (to < 0) {
        refuse(name, value, "an integer >= 0");
    }
}

void read(Text name, Text value, double & to) {
    to = number<double>(name, value, "a number");
}

// "0.9,0.95,inf" is three of them.
void read(Text name, Text value, std::vector<double> & to) {
    for (const std::string & part : parts(value)) {
        read(name, part, to.emplace_back());
    }
}

// "3,5-7" is 3, 5, 6, 7.
void read(Text name, Text value, std::vector<int> & to) {
    constexpr int k_most = 9999;  // no model has more layers
    for (const std::string & part : parts(value)) {
        const size_t dash  = part.find('-');
        const int    first = parse_number<int>(part.substr(0, dash)).value_or(-1);
        const int    last  = dash == std::string::npos ? first : parse_number<int>(part.substr(dash + 1)).value_or(-1);
        if (first < 0 || last < first || last > k_most) {
            refuse(name, value, "a list of layers such as 3,5-7");
        }
        for (int il = first; il <= last; ++il) {
            to.push_back(il);
        }
    }
}

template <typename Value> void read(Text name, Text value, std::optional<Value> & to) {
    Value found{};
    read(name, value, found);
    to = std::move(found);
}

template <auto field> void set(Config & config, Text name, Text value) {
    read(name, value, config.*field);
}

// Where whole layers are left out, attention is of the same ones.
void set_layers(Config & config, const std::vector<int> & layers) {
    if (is_short_gpt(config)) {
        config.attention_layers = layers;
    }
    config.layers = layers;
}

// A policy that is named leaves behind what was said to the one before: its lists, where the new one has no use for them,
// the max_skip that --skip-layers implied, and the region. Channels have no use for what is said of blocks.
void name_policy(Config & config, Text name) {
    const Config before = config;
    config.layers.reset();
    config.attention_layers.reset();
    config.every_row = false;
    config.layer_thresholds.reset();
    config.channel_thresholds.reset();
    if (before.layers && before.max_skip == 0) {
        config.max_skip.reset();
    }
    if (before.policy == Policy::random) {
        config.region = Region::any;
    }
    set_policy(config, name);
    if (config.policy == Policy::channels && before.policy != Policy::channels) {
        const Config usual;
        config.max_skip.reset();
        config.cold_s.reset();
        config.cold_e.reset();
        config.sim_threshold  = usual.sim_threshold;
        config.check_stride   = usual.check_stride;
        config.check_interval = usual.check_interval;
        config.region         = usual.region;
        config.seed           = usual.seed;
    }
    if (config.policy == Policy::skip_decode) {
        config.max_skip.reset();
    } else {
        config.min_layers.reset();
        config.budget_decay = Config().budget_decay;
    }
    if (config.layers && before.layers) {
        set_layers(config, *before.layers);
    }
    if (config.layer_thresholds && before.layer_thresholds) {
        config.layer_thresholds = before.layer_thresholds;
    }
}

// Options that only ffn_skip takes say that it is the policy.
void imply_ffn_skip(Config & config) {
    if (config.policy != Policy::ffn_skip) {
        name_policy(config, policy_name(Policy::ffn_skip));
    }
}

struct Entry {
    Option option;
    void (*set)(Config &, Text name, Text value);
};

const Entry k_entries[] = {
    { { "policy", "NAME",
        "ffn_skip (Algorithm 1, default), channels, short_gpt (whole layers, with --skip-layers), skip_decode, random "
        "or "
        "dense; ends --skip-layers, --attention-layers, --every-row and --layer-thresholds before it" },
      [](Config & c, Text, Text v) { name_policy(c, v); } },
    { { "sim-threshold", "T", "similarity at or above which a token trips; above 1 never (default 0.9)" },
      set<&Config::sim_threshold> },
    { { "cold-s", "N", "layers [0, N) never skip (default: an eighth of the layers)" }, set<&Config::cold_s> },
    { { "cold-e", "N", "layers from N on never skip (default: all but the last eighth)" }, set<&Config::cold_e> },
    { { "warm-up", "N", "generated tokens of a sequence that run in full first (default 30)" },
      set<&Config::warm_up_index> },
    { { "skip-ratio", "R",
        "share of the FFN blocks to skip, 0 to 1 (default 0.25); of weight bytes with --policy channels (default "
        "0.33)" },
      set<&Config::skip_ratio> },
    { { "skip-layers", "LIST",
        "layers whose FFN block is always skipped, such as 3,5-7; no other is, unless --max-skip follows" },
      [](Config & c, Text n, Text v) {
          if (c.policy != Policy::channels) {
              imply_ffn_skip(c);
              c.max_skip = c.layers ? c.max_skip : 0;
          }
          std::vector<int> layers;
          read(n, v, layers);
          set_layers(c, layers);
      } },
    { { "attention-layers", "LIST",
        "layers whose attention is left out but for keys and values, such as 3,5-7; with any policy but dense" },
      set<&Config::attention_layers> },
    { { "every-row", nullptr,
        "--skip-layers and --attention-layers are left out of prompts too, and keys and values with them" },
      [](Config & c, Text, Text) { c.every_row = true; } },
    { { "layer-thresholds", "T,...", "a --sim-threshold for each layer, inf: unchecked" },
      [](Config & c, Text n, Text v) {
          imply_ffn_skip(c);
          read(n, v, c.layer_thresholds);
      } },
    { { "max-skip", "K", "FFN blocks a token skips, in place of --skip-ratio; beside those of --skip-layers" },
      set<&Config::max_skip> },
    { { "check-stride", "N", "check every N-th layer of the adaptive region only (default 1)" },
      set<&Config::check_stride> },
    { { "check-interval", "N",
        "check every N-th token of a sequence only; those between skip what it does (default 1)" },
      set<&Config::check_interval> },
    { { "channel-thresholds", "T,...",
        "--policy channels: four for each layer, for the inputs of QKV, O, up and down" },
      set<&Config::channel_thresholds> },
    { { "tensors", "NAME", "--policy channels: whose input channels are left out, ffn (default) or all" },
      [](Config & c, Text, Text v) { c.tensors = tensors_from_name(v); } },
    { { "min-layers", "N",
        "--policy skip_decode: layers that run from position --budget-decay on (default: so that --skip-ratio of the "
        "layers "
        "are left out on average up to there)" },
      set<&Config::min_layers> },
    { { "budget-decay", "N",
        "--policy skip_decode: positions over which the layers that run fall to the fewest (default 512)" },
      set<&Config::budget_decay> },
    { { "region", "NAME", "where --policy random chooses from: any (layer but the last, default) or adaptive" },
      [](Config & c, Text, Text v) { c.region  = region_from_name(v); } },
    { { "skip-seed", "N", "seed of --policy random (default 0)" }, set<&Config::seed> },
    { { "no-skip", nullptr, "skip nothing: plain llama.cpp" },
      [](Config & c, Text, Text) { name_policy(c, policy_name(Policy::dense)); } },
};

}  // namespace

const std::vector<Option> & options() {
    static const std::vector<Option> all = [] {
        std::vector<Option> list;
        for (const Entry & entry : k_entries) {
            list.push_back(entry.option);
        }
        return list;
    }();
    return all;
}

void set_option(Config & config, const std::string & name, const std::string & value) {
    for (const Entry & entry : k_entries) {
        if (name == entry.option.name) {
            entry.set(config, name, value);
            return;
        }
    }
    throw std::invalid_argument("'" + name + "' is no skip option");
}

std::string environment_name(const std::string & option) {
    std::string name = "FFNSKIP_";
    for (const char c : option) {
        name += c == '-' ? '_' : char(std::toupper(static_cast<unsigned char>(c)));
    }
    return name;
}

}  // namespace ffnskip
