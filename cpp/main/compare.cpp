#include "compare.h"

#include "stats_text.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <utility>
#include <vector>

namespace app {
namespace {

// One of the two, and what each of its tokens took to decode.
struct Run {
    Engine              engine;
    Text                text;
    std::vector<double> seconds;
    std::string         printed;

    Run(const Engine & of, const Tokens & prompt, const Limits & limits) : engine(of), text(engine, prompt, limits) {}

    void advance() {
        const auto start = std::chrono::steady_clock::now();
        text.feed();
        llama_synchronize(engine.session.context());
        if (!text.made().tokens.empty()) {
            seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
        }
        printed += text.choose();
    }
};

// The order changes from token to token: whatever slows the machine down for a while hits both.
void advance_in_turn(Run & dense, Run & skipping) {
    for (bool dense_first = true; dense.text.goes_on() || skipping.text.goes_on(); dense_first = !dense_first) {
        Run & first  = dense_first ? dense : skipping;
        Run & second = dense_first ? skipping : dense;
        for (Run * run : { &first, &second }) {
            if (run->text.goes_on()) {
                run->advance();
            }
        }
    }
}

// The value that a share of `values` lies below, in [0, 1]; 0 where there is none.
double quantile(std::vector<double> values, double share) {
    if (values.empty()) {
        return 0.0;
    }
    std::sort(values.begin(), values.end());
    const double at    = share * double(values.size() - 1);
    const size_t below = size_t(at);
    const size_t above = std::min(below + 1, values.size() - 1);
    return values[below] + (at - double(below)) * (values[above] - values[below]);
}

// Dense seconds by skipping ones, of the tokens that both texts have past the warm-up; of all where there is none.
std::vector<double> ratios(const Run & dense, const Run & skipping, size_t n_warm_up) {
    const size_t        n = std::min(dense.seconds.size(), skipping.seconds.size());
    std::vector<double> list;
    for (size_t i = n_warm_up < n ? n_warm_up : 0; i < n; ++i) {
        list.push_back(dense.seconds[i] / skipping.seconds[i]);
    }
    return list;
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
    const double seconds = quantile(run.seconds, 0.5);
    char         text[96];
    std::snprintf(text, sizeof(text), "%-9s %6zu tokens %9.2f tokens/s", name, run.text.made().tokens.size(),
                  seconds > 0.0 ? 1.0 / seconds : 0.0);
    return text;
}

std::string gain(const std::vector<double> & ratios, const ffnskip::Stats & stats) {
    char text[64];
    std::snprintf(text, sizeof(text), "   speed-up %.2f, %.1f %% of the ", quantile(ratios, 0.5),
                  100.0 * stats.skip_ratio());
    return text + ffnskip::what_is_skipped(stats) + '\n';
}

std::string spread(const std::vector<double> & ratios, bool past_warm_up) {
    char text[192];
    std::snprintf(text, sizeof(text), "speed-up: median of %zu tokens%s; quartiles %.2f and %.2f, from %.2f to %.2f\n",
                  ratios.size(), past_warm_up ? " past the warm-up" : ", none past the warm-up", quantile(ratios, 0.25),
                  quantile(ratios, 0.75), quantile(ratios, 0.0), quantile(ratios, 1.0));
    return text;
}

}  // namespace

Ending compare(Engine & engine, const Arguments & args, const Tokens & prompt, Output & output) {
    const Answering answering;
    const Limits    limits = { args.n_predict, args.reverse_prompts };
    Session         plain(engine.model, args, engine.session.n_ctx(), true);
    Sampler         sampler(engine.model, args);

    Run dense({ engine.model, plain, sampler }, prompt, limits);
    Run skipping(engine, prompt, limits);
    advance_in_turn(dense, skipping);
    for (const auto & [title, run] : { std::pair("--- dense ---\n", &dense), { "--- skipping ---\n", &skipping } }) {
        output.write(title);
        output.write(run->printed);
        output.end_text();
        output.write("\n");
    }

    const size_t              n_warm_up = size_t(engine.session.controller()->settings().warm_up_index);
    const std::vector<double> list      = ratios(dense, skipping, n_warm_up);
    output.write(speed("dense", dense) + "\n");
    output.write(speed("skipping", skipping) + gain(list, engine.session.controller()->stats()));
    output.write(spread(list, n_warm_up < skipping.seconds.size()));
    output.write(agreement(dense.text.made().tokens, skipping.text.made().tokens));
    return skipping.text.made().ending;
}

}  // namespace app
