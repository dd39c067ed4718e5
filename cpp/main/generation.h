// One prompt and the text that follows it.
#pragma once

#include "model.h"
#include "sampler.h"
#include "session.h"

#include <functional>
#include <string>
#include <vector>

namespace app {

enum class Ending {
    end_of_text,     // the model ended it
    limit,           // n_predict tokens
    reverse_prompt,  // one of the texts to stop after
    interrupted,     // Ctrl-C
    context_full,
};

struct Limits {
    int32_t                  n_predict;  // negative: none
    std::vector<std::string> reverse_prompts;
    bool                     special;  // special tokens are printed
};

struct Generation {
    Tokens tokens;  // without the one that ends the text
    Ending ending;

    // The last token is not in the context: it was not needed for another.
    bool last_is_missing() const { return ending != Ending::end_of_text && ending != Ending::interrupted && !tokens.empty(); }
};

// What it takes to generate.
struct Engine {
    const Model & model;
    Session &     session;
    Sampler &     sampler;
};

// Feeds the prompt, then generates; `print` gets the bytes of each token. The prompt must fit the context.
Generation generate(Engine & engine, const Tokens & prompt, const Limits & limits,
                    const std::function<void(const std::string &)> & print);

}  // namespace app
