#include "stats_text.h"

#include <algorithm>
#include <cstdio>
#include <sstream>

namespace ffnskip {

void add(Stats & sum, const Stats & more) {
    sum.tokens += more.tokens;
    sum.ffn_total += more.ffn_total;
    sum.ffn_skipped += more.ffn_skipped;
    sum.checks += more.checks;
    sum.tokens_never_tripped += more.tokens_never_tripped;
    sum.ffn_bytes_not_read += more.ffn_bytes_not_read;
    sum.skipped_per_layer.resize(std::max(sum.skipped_per_layer.size(), more.skipped_per_layer.size()), 0);
    for (size_t il = 0; il < more.skipped_per_layer.size(); ++il) {
        sum.skipped_per_layer[il] += more.skipped_per_layer[il];
    }
}

std::string to_line(const Stats & stats) {
    char text[256];
    std::snprintf(text, sizeof(text),
                  "%llu generated tokens, %.1f %% of their FFN blocks skipped (%llu of %llu), %.2f checks per token, "
                  "%.1f MiB of FFN weights not read",
                  static_cast<unsigned long long>(stats.tokens), 100.0 * stats.skip_ratio(),
                  static_cast<unsigned long long>(stats.ffn_skipped), static_cast<unsigned long long>(stats.ffn_total),
                  stats.tokens == 0 ? 0.0 : double(stats.checks) / double(stats.tokens),
                  double(stats.ffn_bytes_not_read) / (1024.0 * 1024.0));
    return text;
}

std::string to_json(const Stats & stats) {
    std::ostringstream json;
    json << "{\n  \"tokens\": " << stats.tokens << ",\n  \"ffn_total\": " << stats.ffn_total
         << ",\n  \"ffn_skipped\": " << stats.ffn_skipped << ",\n  \"skip_ratio\": " << stats.skip_ratio()
         << ",\n  \"checks\": " << stats.checks << ",\n  \"tokens_never_tripped\": " << stats.tokens_never_tripped
         << ",\n  \"ffn_bytes_not_read\": " << stats.ffn_bytes_not_read << ",\n  \"skipped_per_layer\": [";
    for (size_t il = 0; il < stats.skipped_per_layer.size(); ++il) {
        json << (il == 0 ? "" : ", ") << stats.skipped_per_layer[il];
    }
    json << "]\n}\n";
    return json.str();
}

}  // namespace ffnskip
