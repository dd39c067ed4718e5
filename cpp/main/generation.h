// One prompt and the text that follows it.
#pragma once

#include "model.h"
#include "sampler.h"
#include "session.h"
#include "terminal.h"

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

    // The last token is not in the context: no other had to follow it.
    bool last_is_missing() const {
        return !tokens.empty() && ending != Ending::end_of_text && ending != Ending::interrupted;
    }
};

// What it takes to generate.
struct Engine {
    const Model & model;
    Session &     session;
    Sampler &     sampler;
};

// Feeds the prompt, which must fit the context, then generates and writes the text, and a newline at its end. Where an
// Answering lives, Ctrl-C ends it.
Generation generate(Engine & engine, const Tokens & prompt, const Limits & limits, Output & output);

}  // namespace app
