#include "compare.h"

#include <algorithm>
#include <cstdio>

namespace app {
namespace {

struct Run {
    Generation made;
    double     tokens_per_second;
};

Run run(Engine & engine, const ffnskip::Config & config, const Tokens & prompt, const Limits & limits,
        Output & output) {
    engine.session.restart(config);
    engine.sampler.reset();
    const Generation made = generate(engine, prompt, limits, output);
    output.write("\n");
    llama_synchronize(engine.session.context());
    const llama_perf_context_data perf = llama_perf_context(engine.session.context());
    return { made, perf.t_eval_ms > 0.0 ? 1e3 * perf.n_eval / perf.t_eval_ms : 0.0 };
}

double percent(size_t part, size_t whole) {
    return whole == 0 ? 100.0 : 100.0 * double(part) / double(whole);
}

std::string agreement(const Tokens & a, const Tokens & b) {
    const size_t n      = std::max(a.size(), b.size());
    const size_t common = std::min(a.size(), b.size());
    const size_t first  = size_t(std::mismatch(a.begin(), a.begin() + long(common), b.begin()).first - a.begin());
    size_t       equal  = 0;
    for (size_t i = 0; i < common; ++i) {
        equal += a[i] == b[i];
    }
    char text[160];
    std::snprintf(text, sizeof(text),
                  "agreement: the first %zu of %zu tokens (%.1f %%), %zu position by position (%.1f %%)\n", first, n,
                  percent(first, n), equal, percent(equal, n));
    return text;
}

std::string speed(const char * name, const Run & run) {
    char text[96];
    std::snprintf(text, sizeof(text), "%-9s %6zu tokens %9.2f tokens/s", name, run.made.tokens.size(),
                  run.tokens_per_second);
    return text;
}

std::string gain(const Run & dense, const Run & skipping, const ffnskip::Stats & stats) {
    char text[96];
    std::snprintf(text, sizeof(text), "   speed-up %.2f, %.1f %% of the FFN blocks skipped\n",
                  dense.tokens_per_second > 0.0 ? skipping.tokens_per_second / dense.tokens_per_second : 0.0,
                  100.0 * stats.skip_ratio());
    return text;
}

}  // namespace

Ending compare(Engine & engine, const Arguments & args, const Tokens & prompt, Output & output) {
    const Answering answering;
    const Limits    limits = { args.n_predict, args.reverse_prompts, args.special };
    const ffnskip::Config skipping = engine.session.controller().config();
    ffnskip::Config       dense;
    dense.policy = ffnskip::Policy::dense;

    output.write("--- dense ---\n");
    const Run without = run(engine, dense, prompt, limits, output);
    if (without.made.ending == Ending::interrupted) {
        return without.made.ending;
    }
    output.write("--- skipping ---\n");
    const Run with = run(engine, skipping, prompt, limits, output);

    output.write(speed("dense", without) + "\n");
    output.write(speed("skipping", with) + gain(without, with, engine.session.controller().stats()));
    output.write(agreement(without.made.tokens, with.made.tokens));
    return with.made.ending;
}

}  // namespace app
