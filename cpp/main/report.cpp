#include "report.h"

#include "stats_text.h"

#include <cinttypes>
#include <cstdio>

namespace app {
namespace {

void print_rate(const char * name, double ms, int32_t n, const char * unit) {
    std::fprintf(stderr, "ffnskip-main: %18s = %10.2f ms / %5d %-6s (%8.2f ms per token, %8.2f tokens per second)\n",
                 name, ms, n, unit, ms / n, 1e3 * n / ms);
}

}  // namespace

void note(const std::string & text) {
    std::fprintf(stderr, "ffnskip-main: note: %s\n", one_line(text).c_str());
}

void print_notice(Session & session) {
    const auto notice = session.controller() != nullptr ? session.controller()->take_notice() : std::nullopt;
    if (notice) {
        note(*notice);
    }
}

std::string one_line(const std::string & text) {
    std::string line;
    for (const char c : text) {
        line += c == '\n' ? std::string("\\n") : c == '\r' ? std::string("\\r") : std::string(1, c);
    }
    return line;
}

void print_summary(Session & session, std::optional<uint32_t> seed, double load_ms, double total_ms) {
    llama_synchronize(session.context());
    const llama_perf_context_data perf = llama_perf_context(session.context());
    std::fprintf(stderr, "ffnskip-main: %18s = %10.2f ms\n", "load time", load_ms);
    if (perf.t_p_eval_ms > 0.0) {
        print_rate("prompt eval time", perf.t_p_eval_ms, perf.n_p_eval, "tokens");
    }
    if (perf.t_eval_ms > 0.0) {
        print_rate("eval time", perf.t_eval_ms, perf.n_eval, "runs");
    }
    std::fprintf(stderr, "ffnskip-main: %18s = %10.2f ms\n", "total time", total_ms);
    if (seed) {
        std::fprintf(stderr, "ffnskip-main: %18s = %10" PRIu32 "\n", "seed", *seed);
    }
    if (session.controller() != nullptr) {
        std::fprintf(stderr, "ffnskip-main: %s\n", ffnskip::to_line(session.controller()->stats()).c_str());
    }
}

void print_layers(Session & session) {
    if (session.controller() == nullptr) {
        std::fprintf(stderr, "ffnskip-main: policy dense: nothing is skipped\n");
        return;
    }
    const ffnskip::Stats      stats    = session.controller()->stats();
    const ffnskip::Settings & settings = session.controller()->settings();
    std::fprintf(stderr, "ffnskip-main: policy %s, %" PRIu64 " tokens", ffnskip::policy_name(settings.policy),
                 stats.tokens);
    if (!settings.leaves_channels_out()) {
        std::fprintf(stderr, ", %" PRIu64 " never reached the threshold", stats.tokens_never_tripped);
    }
    std::fputc('\n', stderr);
    for (size_t il = 0; il < stats.skipped_per_layer.size(); ++il) {
        const uint64_t    n     = stats.skipped_per_layer[il];
        const double      share = stats.tokens == 0 ? 0.0 : 100.0 * double(n) / double(stats.tokens);
        const std::string kept  = ffnskip::kept_in_layer(stats, il);
        std::fprintf(stderr, "ffnskip-main: layer %3zu: FFN skipped for %8" PRIu64 " tokens (%5.1f %%)%s%s", il, n,
                     share, kept.empty() ? "" : "; channels kept: ", kept.c_str());
        if (stats.attention_skipped > 0) {
            std::fprintf(stderr, "; attention for %8" PRIu64, stats.attention_skipped_per_layer[il]);
        }
        std::fputc('\n', stderr);
    }
}

}  // namespace app
