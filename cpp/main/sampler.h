// Chooses the next token with libllama's samplers, in the order of llama-cli.
#pragma once

#include "arguments.h"
#include "model.h"

#include <llama.h>

#include <memory>
#include <vector>

namespace app {

class Sampler {
public:
    // Throws BadInput for a grammar that can't be used.
    Sampler(const Model & model, const Arguments & args);

    // From the last output of the context; the token counts as generated. LLAMA_TOKEN_NULL where the grammar is
    // complete and --ignore-eos leaves nothing to follow it.
    llama_token sample(llama_context * context);

    // Penalties look back on the prompt, the grammar does not.
    void accept_prompt(const Tokens & tokens);

    // As at the beginning, the random numbers included.
    void reset();

private:
    struct Free {
        void operator()(llama_sampler * sampler) const { llama_sampler_free(sampler); }
    };

    llama_token choose(const float * logits, bool grammar_first);
    bool        grammar_allows(llama_token token);

    std::unique_ptr<llama_sampler, Free> chain_;
    std::unique_ptr<llama_sampler, Free> grammar_;     // null: none
    std::vector<llama_token_data>        candidates_;  // [n_vocab]
};

}  // namespace app
