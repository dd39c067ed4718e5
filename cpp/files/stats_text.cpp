#include "stats_text.h"

#include "tensor_names.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <iomanip>
#include <sstream>
#include <vector>

namespace ffnskip {
namespace {

struct Channels {
    uint64_t total = 0;
    uint64_t kept  = 0;
};

using ByKind = std::array<Channels, k_input_kinds>;

// Of layers [first, last).
ByKind by_kind(const Stats & stats, size_t first, size_t last) {
    ByKind sums;
    for (size_t i = first * k_input_kinds; i < last * k_input_kinds; ++i) {
        sums[i % k_input_kinds].total += stats.channels_total[i];
        sums[i % k_input_kinds].kept += stats.channels_kept[i];
    }
    return sums;
}

size_t n_layer(const Stats & stats) {
    return stats.channels_total.size() / k_input_kinds;
}

double percent(uint64_t part, uint64_t whole) {
    return whole == 0 ? 0.0 : 100.0 * double(part) / double(whole);
}

double mib(uint64_t bytes) {
    return double(bytes) / (1024.0 * 1024.0);
}

std::string kept(const ByKind & channels) {
    std::string list;
    for (size_t kind = 0; kind < channels.size(); ++kind) {
        char text[32];
        std::snprintf(text, sizeof(text), "%s %.0f %%", k_input_kind_names[kind],
                      percent(channels[kind].kept, channels[kind].total));
        if (channels[kind].total > 0) {
            list += (list.empty() ? "" : ", ") + std::string(text);
        }
    }
    return list;
}

void add(std::vector<uint64_t> & sum, const std::vector<uint64_t> & more) {
    sum.resize(std::max(sum.size(), more.size()), 0);
    for (size_t i = 0; i < more.size(); ++i) {
        sum[i] += more[i];
    }
}

// [a, b]
std::string list(const std::vector<uint64_t> & values, size_t first, size_t last) {
    std::string text;
    for (size_t i = first; i < last; ++i) {
        text += (i == first ? "" : ", ") + std::to_string(values[i]);
    }
    return '[' + text + ']';
}

// A list for each layer.
std::string by_layer(const std::vector<uint64_t> & values) {
    std::string text;
    for (size_t first = 0; first < values.size(); first += k_input_kinds) {
        text += (first == 0 ? "" : ", ") + list(values, first, first + k_input_kinds);
    }
    return '[' + text + ']';
}

}  // namespace

void add(Stats & sum, const Stats & more) {
    sum.tokens += more.tokens;
    sum.ffn_total += more.ffn_total;
    sum.ffn_skipped += more.ffn_skipped;
    sum.checks += more.checks;
    sum.tokens_never_tripped += more.tokens_never_tripped;
    sum.ffn_bytes_not_read += more.ffn_bytes_not_read;
    sum.attention_total += more.attention_total;
    sum.attention_skipped += more.attention_skipped;
    sum.attention_bytes_not_read += more.attention_bytes_not_read;
    sum.bytes_total += more.bytes_total;
    sum.bytes_left_out += more.bytes_left_out;
    add(sum.skipped_per_layer, more.skipped_per_layer);
    add(sum.attention_skipped_per_layer, more.attention_skipped_per_layer);
    add(sum.channels_total, more.channels_total);
    add(sum.channels_kept, more.channels_kept);
}

std::string what_is_skipped(const Stats & stats) {
    if (stats.bytes_total == 0) {
        return "FFN blocks skipped";
    }
    const ByKind channels = by_kind(stats, 0, n_layer(stats));
    const bool   ffn_only = stats.attention_skipped == 0 &&
                            channels[size_t(InputKind::qkv)].total + channels[size_t(InputKind::o)].total == 0;
    return ffn_only ? "FFN weight bytes left out" : "attention and FFN weight bytes left out";
}

std::string kept_in_layer(const Stats & stats, size_t layer) {
    return layer < n_layer(stats) ? kept(by_kind(stats, layer, layer + 1)) : "";
}

std::string to_line(const Stats & stats) {
    const std::string  channels = kept(by_kind(stats, 0, n_layer(stats)));
    std::ostringstream line;
    line << std::fixed << std::setprecision(1) << stats.tokens << " generated tokens, " << 100.0 * stats.skip_ratio()
         << " % of their " << what_is_skipped(stats) << " (";
    if (stats.attention_skipped > 0) {
        line << "attention " << stats.attention_skipped << " of " << stats.attention_total << ", FFN "
             << stats.ffn_skipped << " of " << stats.ffn_total << (channels.empty() ? ")" : "; ");
    } else if (channels.empty()) {
        line << stats.ffn_skipped << " of " << stats.ffn_total << ')';
    }
    if (channels.empty()) {
        line << ", " << std::setprecision(2) << (stats.tokens == 0 ? 0.0 : double(stats.checks) / double(stats.tokens))
             << " checks per token";
    } else {
        line << channels << " of channels kept)";
    }
    line << std::setprecision(1) << ", " << mib(stats.ffn_bytes_not_read) << " MiB of FFN weights not read";
    if (stats.attention_skipped > 0) {
        line << ", " << mib(stats.attention_bytes_not_read) << " of attention's";
    }
    return line.str();
}

std::string to_json(const Stats & stats) {
    std::ostringstream json;
    json << "{\n  \"tokens\": " << stats.tokens << ",\n  \"ffn_total\": " << stats.ffn_total
         << ",\n  \"ffn_skipped\": " << stats.ffn_skipped << ",\n  \"skip_ratio\": " << stats.skip_ratio()
         << ",\n  \"checks\": " << stats.checks << ",\n  \"tokens_never_tripped\": " << stats.tokens_never_tripped
         << ",\n  \"ffn_bytes_not_read\": " << stats.ffn_bytes_not_read
         << ",\n  \"skipped_per_layer\": " << list(stats.skipped_per_layer, 0, stats.skipped_per_layer.size())
         << ",\n  \"attention_total\": " << stats.attention_total
         << ",\n  \"attention_skipped\": " << stats.attention_skipped
         << ",\n  \"attention_bytes_not_read\": " << stats.attention_bytes_not_read
         << ",\n  \"attention_skipped_per_layer\": "
         << list(stats.attention_skipped_per_layer, 0, stats.attention_skipped_per_layer.size())
         << ",\n  \"bytes_total\": " << stats.bytes_total << ",\n  \"bytes_left_out\": " << stats.bytes_left_out
         << ",\n  \"channels_total\": " << by_layer(stats.channels_total)
         << ",\n  \"channels_kept\": " << by_layer(stats.channels_kept) << "\n}\n";
    return json.str();
}

}  // namespace ffnskip
