// One prompt and the text that follows it.
#pragma once

#include "model.h"
#include "sampler.h"
#include "session.h"
#include "terminal.h"

#include <optional>
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
};

struct Generation {
    Tokens tokens;  // without the one that ends the text
    Ending ending;

    // The last token is not in the context: no other had to follow it.
    bool last_is_missing() const { return !tokens.empty() && ending != Ending::end_of_text; }
};

// What it takes to generate.
struct Engine {
    const Model & model;
    Session &     session;
    Sampler &     sampler;
};

// A text in the making. Where an Answering lives, Ctrl-C ends it.
class Text {
public:
    // Feeds the prompt, which must fit the context.
    Text(Engine & engine, const Tokens & prompt, const Limits & limits);

    bool goes_on() const;
    // Decodes the newest token, if there is one.
    void feed();
    // Chooses the next; returns its bytes, which need not be whole characters.
    std::string choose();

    const Generation & made() const { return made_; }

private:
    std::optional<Ending> ending_after(const std::string & piece) const;

    Engine &     engine_;
    const Limits limits_;
    Generation   made_  = { {}, Ending::interrupted };
    bool         ended_ = false;
    std::string  text_;
};

// Generates and writes a text after the prompt, which must fit the context, and a newline at its end.
Generation generate(Engine & engine, const Tokens & prompt, const Limits & limits, Output & output);

}  // namespace app
