#include "sampler.h"

#include "errors.h"
#include "log.h"

#include <cmath>
#include <stdexcept>
#include <type_traits>

namespace app {
namespace {

void add(llama_sampler * chain, llama_sampler * sampler) {
    llama_sampler_chain_add(chain, sampler);
}

// Two functions that older versions of libllama declare otherwise.

template <typename Init> llama_sampler * init_penalties(Init init, int32_t n_vocab, const Sampling & sampling) {
    const float repeat = sampling.repeat_penalty, frequency = sampling.frequency_penalty, presence = sampling.presence_penalty;
    if constexpr (std::is_invocable_v<Init, int32_t, int32_t, float, float, float>) {
        return init(n_vocab, sampling.repeat_last_n, repeat, frequency, presence);
    } else {
        return init(sampling.repeat_last_n, repeat, frequency, presence);
    }
}

template <typename Init, typename... Rest>
llama_sampler * init_dry(Init init, const llama_vocab * vocab, int32_t n_ctx_train, Rest... rest) {
    if constexpr (std::is_invocable_v<Init, const llama_vocab *, Rest...>) {
        return init(vocab, rest...);
    } else {
        return init(vocab, n_ctx_train, rest...);
    }
}

// Tokens the model's file says never to generate, and with --ignore-eos those that end a text.
void add_bias(llama_sampler * chain, const llama_vocab * vocab, const Sampling & sampling) {
    std::vector<llama_logit_bias> never;
#ifdef FFNSKIP_HAVE_SUPPRESS_TOKENS
    int32_t             n_suppressed = 0;
    const llama_token * suppressed   = llama_vocab_get_suppress_tokens(vocab, &n_suppressed);
    for (int32_t i = 0; i < n_suppressed; ++i) {
        never.push_back({ suppressed[i], -INFINITY });
    }
#endif
    const int32_t n_vocab = llama_vocab_n_tokens(vocab);
    for (llama_token token = 0; sampling.ignore_eos && token < n_vocab; ++token) {
        if (llama_vocab_is_eog(vocab, token)) {
            never.push_back({ token, -INFINITY });
        }
    }
    if (!never.empty()) {
        add(chain, llama_sampler_init_logit_bias(n_vocab, int32_t(never.size()), never.data()));
    }
}

void add_mirostat(llama_sampler * chain, int32_t n_vocab, const Sampling & sampling) {
    const uint32_t seed = sampling.seed;
    const float    tau  = sampling.mirostat_ent;
    const float    eta  = sampling.mirostat_lr;
    add(chain, llama_sampler_init_temp(sampling.temp));
    add(chain, sampling.mirostat == 1 ? llama_sampler_init_mirostat(n_vocab, seed, tau, eta, 100) :
                                        llama_sampler_init_mirostat_v2(seed, tau, eta));
}

void add_penalties(llama_sampler * chain, const llama_vocab * vocab, int32_t n_ctx_train, const Sampling & sampling) {
    add(chain, init_penalties(llama_sampler_init_penalties, llama_vocab_n_tokens(vocab), sampling));
    const char * breakers[] = { "\n", ":", "\"", "*" };
    add(chain, init_dry(llama_sampler_init_dry, vocab, n_ctx_train, sampling.dry_multiplier, sampling.dry_base,
                        sampling.dry_allowed_length, sampling.dry_penalty_last_n, &breakers[0], std::size(breakers)));
}

// At temperature 0 only typical sampling can take the most probable token away, so the others are left out.
void add_truncation(llama_sampler * chain, const Sampling & sampling) {
    const bool greedy = sampling.temp <= 0.0f;
    if (!greedy) {
        add(chain, llama_sampler_init_top_k(sampling.top_k));
    }
    if (sampling.typical < 1.0f) {
        add(chain, llama_sampler_init_typical(sampling.typical, 0));
    }
    if (greedy) {
        add(chain, llama_sampler_init_greedy());
        return;
    }
    add(chain, llama_sampler_init_top_p(sampling.top_p, 0));
    add(chain, llama_sampler_init_min_p(sampling.min_p, 0));
    add(chain, llama_sampler_init_temp(sampling.temp));
    add(chain, llama_sampler_init_dist(sampling.seed));
}

// The parser's reason, from what it printed or logged. It quotes the rest of the grammar: one line of it will do.
std::string grammar_error(const std::string & printed) {
    constexpr size_t  k_most   = 120;
    const std::string k_before = "error parsing grammar: ";
    const size_t      at       = printed.find(k_before);
    if (at == std::string::npos) {
        return take_error();
    }
    const std::string reason = printed.substr(at + k_before.size());
    const std::string line   = reason.substr(0, std::min(k_most, reason.find('\n')));
    return line.back() == ' ' ? line + "the end" : line;
}

llama_sampler * new_grammar(const llama_vocab * vocab, const Sampling & sampling) {
    llama_sampler * grammar = nullptr;
    std::string     reason;
    take_error();
    const std::string printed = stderr_of([&] {
        try {
            grammar = llama_sampler_init_grammar(vocab, sampling.grammar.c_str(), "root");
        } catch (const std::exception & error) {
            reason = error.what();
        }
    });
    if (grammar == nullptr) {
        throw BadInput(sampling.grammar_source + ": it is no GBNF grammar: " +
                       (reason.empty() ? grammar_error(printed) : reason));
    }
    return grammar;
}

}  // namespace

Sampler::Sampler(const Model & model, const Sampling & sampling) {
    const llama_vocab * vocab = model.vocab();
    candidates_.resize(size_t(llama_vocab_n_tokens(vocab)));
    chain_.reset(llama_sampler_chain_init(llama_sampler_chain_default_params()));
    add_bias(chain_.get(), vocab, sampling);
    if (sampling.mirostat != 0) {
        add_mirostat(chain_.get(), llama_vocab_n_tokens(vocab), sampling);
    } else {
        add_penalties(chain_.get(), vocab, llama_model_n_ctx_train(model.get()), sampling);
        add_truncation(chain_.get(), sampling);
    }
    if (!sampling.grammar_source.empty()) {
        grammar_.reset(new_grammar(vocab, sampling));
    }
}

// Asking the grammar about one token is cheap, about the vocabulary it is not: all tokens are put to it only after it
// has refused the one chosen without it.
llama_token Sampler::sample(llama_context * context) {
    const float * logits = llama_get_logits_ith(context, -1);
    if (logits == nullptr) {
        throw std::runtime_error("libllama has no output to sample from");
    }
    llama_token token = choose(logits, false);
    if (grammar_ != nullptr) {
        if (!grammar_allows(token)) {
            token = choose(logits, true);
        }
        if (!grammar_allows(token)) {
            return LLAMA_TOKEN_NULL;
        }
        llama_sampler_accept(grammar_.get(), token);
    }
    llama_sampler_accept(chain_.get(), token);
    return token;
}

llama_token Sampler::choose(const float * logits, bool grammar_first) {
    for (size_t i = 0; i < candidates_.size(); ++i) {
        candidates_[i] = { llama_token(i), logits[i], 0.0f };
    }
    llama_token_data_array array = { candidates_.data(), candidates_.size(), -1, false };
    if (grammar_first) {
        llama_sampler_apply(grammar_.get(), &array);
    }
    llama_sampler_apply(chain_.get(), &array);
    if (array.selected < 0 || size_t(array.selected) >= array.size) {
        throw std::runtime_error("no token is left to choose from; loosen the sampling options");
    }
    return array.data[array.selected].id;
}

bool Sampler::grammar_allows(llama_token token) {
    llama_token_data       one   = { token, 0.0f, 0.0f };
    llama_token_data_array array = { &one, 1, -1, false };
    llama_sampler_apply(grammar_.get(), &array);
    return one.logit != -INFINITY;
}

void Sampler::accept_prompt(const Tokens & tokens) {
    for (const llama_token token : tokens) {
        llama_sampler_accept(chain_.get(), token);
    }
}

void Sampler::reset() {
    llama_sampler_reset(chain_.get());
    if (grammar_ != nullptr) {
        llama_sampler_reset(grammar_.get());
    }
}

}  // namespace app
