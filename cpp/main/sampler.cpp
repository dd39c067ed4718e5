#include "sampler.h"

#include "errors.h"
#include "log.h"

#include <cmath>
#include <stdexcept>
#include <type_traits>

namespace app {
namespace {

// Older versions of libllama take the size of the vocabulary too.
template <typename Init> llama_sampler * init_penalties(Init init, int32_t n_vocab, const Arguments & args) {
    if constexpr (std::is_invocable_v<Init, int32_t, int32_t, float, float, float>) {
        return init(n_vocab, args.repeat_last_n, args.repeat_penalty, args.frequency_penalty, args.presence_penalty);
    } else {
        return init(args.repeat_last_n, args.repeat_penalty, args.frequency_penalty, args.presence_penalty);
    }
}

// Tokens the model's file says never to generate, and with --ignore-eos those that end a text.
std::vector<llama_logit_bias> never_generated(const llama_vocab * vocab, bool ignore_eos) {
    std::vector<llama_logit_bias> never;
#ifdef FFNSKIP_HAVE_SUPPRESS_TOKENS
    int32_t             n_suppressed = 0;
    const llama_token * suppressed   = llama_vocab_get_suppress_tokens(vocab, &n_suppressed);
    for (int32_t i = 0; i < n_suppressed; ++i) {
        never.push_back({ suppressed[i], -INFINITY });
    }
#endif
    for (llama_token token = 0; ignore_eos && token < llama_vocab_n_tokens(vocab); ++token) {
        if (llama_vocab_is_eog(vocab, token)) {
            never.push_back({ token, -INFINITY });
        }
    }
    return never;
}

llama_sampler * new_chain(const llama_vocab * vocab, const Arguments & args) {
    llama_sampler * chain   = llama_sampler_chain_init(llama_sampler_chain_default_params());
    const int32_t   n_vocab = llama_vocab_n_tokens(vocab);
    const auto      add     = [&](llama_sampler * sampler) { llama_sampler_chain_add(chain, sampler); };
    if (const auto never = never_generated(vocab, args.ignore_eos); !never.empty()) {
        add(llama_sampler_init_logit_bias(n_vocab, int32_t(never.size()), never.data()));
    }
    add(init_penalties(llama_sampler_init_penalties, n_vocab, args));
    if (!args.is_random()) {  // none of the others takes the most probable token away
        add(llama_sampler_init_greedy());
        return chain;
    }
    add(llama_sampler_init_top_k(args.top_k));
    add(llama_sampler_init_top_p(args.top_p, 0));
    add(llama_sampler_init_min_p(args.min_p, 0));
    add(llama_sampler_init_temp(args.temp));
    add(llama_sampler_init_dist(args.seed));
    return chain;
}

// What is wrong with a grammar, libllama's parser says itself on standard error.
llama_sampler * new_grammar(const llama_vocab * vocab, const Arguments & args) {
    std::string     reason;
    llama_sampler * grammar = nullptr;
    take_error();
    try {
        grammar = llama_sampler_init_grammar(vocab, args.grammar.c_str(), "root");
        reason  = take_error();
    } catch (const std::exception & error) {
        reason = error.what();
    }
    if (grammar == nullptr) {
        throw BadInput(args.grammar_source + ": it is no GBNF grammar: " + reason);
    }
    return grammar;
}

}  // namespace

Sampler::Sampler(const Model & model, const Arguments & args)
    : chain_(new_chain(model.vocab(), args)),
      grammar_(args.grammar_source.empty() ? nullptr : new_grammar(model.vocab(), args)),
      candidates_(size_t(llama_vocab_n_tokens(model.vocab()))) {}

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
