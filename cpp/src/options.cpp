#include "ffnskip/options.h"

#include "numbers.h"

#include <algorithm>
#include <cctype>
#include <limits>
#include <stdexcept>

namespace ffnskip {
namespace {

[[noreturn]] void refuse(const std::string & name, const std::string & value, const char * wanted) {
    throw std::invalid_argument(name + ": '" + value + "' is not " + wanted);
}

uint64_t to_unsigned(const std::string & name, const std::string & value, uint64_t most) {
    const std::optional<uint64_t> number = parse_number<uint64_t>(value);
    if (!number || *number > most) {
        refuse(name, value, "an integer >= 0");
    }
    return *number;
}

int to_count(const std::string & name, const std::string & value) {
    return int(to_unsigned(name, value, std::numeric_limits<int>::max()));
}

double to_number(const std::string & name, const std::string & value) {
    const std::optional<double> number = parse_number<double>(value);
    if (!number) {
        refuse(name, value, "a number");
    }
    return *number;
}

// "0.9,0.95,inf" is three of them.
std::vector<double> to_numbers(const std::string & name, const std::string & value) {
    std::vector<double> numbers;
    for (size_t begin = 0; begin <= value.size();) {
        const size_t comma = std::min(value.find(',', begin), value.size());
        numbers.push_back(to_number(name, value.substr(begin, comma - begin)));
        begin = comma + 1;
    }
    return numbers;
}

// "3,5-7" is 3, 5, 6, 7.
std::vector<int> to_layers(const std::string & name, const std::string & value) {
    constexpr int k_most = 9999;  // no model has more layers
    const auto    layer  = [&](const std::string & text) {
        const std::optional<int> number = parse_number<int>(text);
        return number && *number <= k_most ? *number : -1;
    };
    std::vector<int> layers;
    for (size_t begin = 0; begin <= value.size();) {
        const size_t      comma = std::min(value.find(',', begin), value.size());
        const std::string part  = value.substr(begin, comma - begin);
        const size_t      dash  = part.find('-');
        const int         first = layer(part.substr(0, dash));
        const int         last  = dash == std::string::npos ? first : layer(part.substr(dash + 1));
        if (first < 0 || last < first) {
            refuse(name, value, "a list of layers such as 3,5-7");
        }
        for (int il = first; il <= last; ++il) {
            layers.push_back(il);
        }
        begin = comma + 1;
    }
    return layers;
}

using Setter = void (*)(Config &, const std::string & name, const std::string & value);

struct Entry {
    Option option;
    Setter set;
};

using Text = const std::string &;

const Entry k_entries[] = {
    { { "policy", "NAME", "ffn_skip (Algorithm 1, default), random or dense" },
      [](Config & c, Text, Text v) {
          if (v == "fixed_plus_ffn_skip" && c.max_skip == 0) {
              c.max_skip.reset();  // which --skip-layers implied
          }
          set_policy(c, v);
      } },
    { { "sim-threshold", "T", "similarity at or above which a token trips; above 1 never (default 0.9)" },
      [](Config & c, Text n, Text v) { c.sim_threshold = to_number(n, v); } },
    { { "cold-s", "N", "layers [0, N) never skip (default: an eighth of the layers)" },
      [](Config & c, Text n, Text v) { c.cold_s = to_count(n, v); } },
    { { "cold-e", "N", "layers from N on never skip (default: all but the last eighth)" },
      [](Config & c, Text n, Text v) { c.cold_e = to_count(n, v); } },
    { { "warm-up", "N", "generated tokens of a sequence that run in full first (default 30)" },
      [](Config & c, Text n, Text v) { c.warm_up_index = to_count(n, v); } },
    { { "skip-ratio", "R", "share of the FFN blocks to skip, 0 to 1 (default 0.25)" },
      [](Config & c, Text n, Text v) { c.skip_ratio = to_number(n, v); } },
    { { "skip-layers", "LIST", "layers whose FFN block is always skipped, such as 3,5-7; no other is, unless --max-skip follows" },
      [](Config & c, Text n, Text v) {
          c.policy   = Policy::ffn_skip;
          c.max_skip = c.layers ? c.max_skip : 0;
          c.layers   = to_layers(n, v);
      } },
    { { "layer-thresholds", "T,...", "a --sim-threshold for each layer, inf: unchecked" },
      [](Config & c, Text n, Text v) {
          c.policy           = Policy::ffn_skip;
          c.layer_thresholds = to_numbers(n, v);
      } },
    { { "max-skip", "K", "FFN blocks a token skips, in place of --skip-ratio; beside those of --skip-layers" },
      [](Config & c, Text n, Text v) { c.max_skip = to_count(n, v); } },
    { { "check-stride", "N", "check every N-th layer of the adaptive region only (default 1)" },
      [](Config & c, Text n, Text v) { c.check_stride = to_count(n, v); } },
    { { "region", "NAME", "where --policy random chooses from: any (layer but the last, default) or adaptive" },
      [](Config & c, Text, Text v) { c.region = region_from_name(v); } },
    { { "skip-seed", "N", "seed of --policy random (default 0)" },
      [](Config & c, Text n, Text v) { c.seed = to_unsigned(n, v, std::numeric_limits<uint64_t>::max()); } },
    { { "no-skip", nullptr, "skip nothing: plain llama.cpp" },
      [](Config & c, Text, Text) {
          c.layers.reset();
          c.layer_thresholds.reset();
          c.policy = Policy::dense;
      } },
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
