#include "ffnskip/choices.h"

#include <algorithm>
#include <cmath>
#include <exception>
#include <numeric>

namespace ffnskip {
namespace {

// Logarithm of the sum that the probabilities of these logits are parts of.
double log_sum(const float * logits, int32_t n) {
    const double most = double(*std::max_element(logits, logits + n));
    double       sum  = 0.0;
    for (int32_t i = 0; i < n; ++i) {
        sum += std::exp(double(logits[i]) - most);
    }
    return most + std::log(sum);
}

void tell_likelihoods(const float * logits, int32_t n_vocab, int n_likeliest, Choice & choice) {
    const double sum      = log_sum(logits, n_vocab);
    choice.log_likelihood = double(logits[choice.token]) - sum;

    std::vector<llama_token> tokens(static_cast<size_t>(n_vocab));
    std::iota(tokens.begin(), tokens.end(), 0);
    const auto end = tokens.begin() + std::clamp(n_likeliest, 0, n_vocab);
    std::partial_sort(tokens.begin(), end, tokens.end(), [&](llama_token a, llama_token b) {
        return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
    });
    for (auto token = tokens.begin(); token != end; ++token) {
        choice.likeliest.emplace_back(*token, double(logits[*token]) - sum);
    }
}

Choice choose_one(Session & session, const Row & wanted, int32_t row) {
    Choice choice;
    try {
        choice.token = llama_sampler_sample(wanted.sampler, session.context(), row);
    } catch (const std::exception & error) {  // a grammar that none of the tokens fits
        choice.error = error.what();
        return choice;
    }
    if (wanted.n_likeliest) {
        tell_likelihoods(llama_get_logits_ith(session.context(), row), session.n_vocab(), *wanted.n_likeliest, choice);
    }
    if (session.controller() != nullptr && !session.controller()->hooked()) {
        choice.left_out = session.controller()->row_stats(row);
    }
    return choice;
}

}  // namespace

std::vector<Choice> choose(Session & session, const std::vector<Row> & rows, Fed fed) {
    for (const Row & row : rows) {
        session.add(row.token, row.seq, row.sampler != nullptr);
    }
    session.decode(fed);
    std::vector<Choice> choices;
    for (size_t i = 0; i < rows.size(); ++i) {
        if (rows[i].sampler != nullptr) {
            choices.push_back(choose_one(session, rows[i], int32_t(i)));
        }
    }
    return choices;
}

}  // namespace ffnskip
