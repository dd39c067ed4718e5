// A conversation, rendered as the model's chat template asks for it.
#pragma once

#include "arguments.h"
#include "jinja/jinja.h"
#include "model.h"

#include <optional>
#include <string>
#include <vector>

namespace app {

// What to feed for an answer to the newest message.
struct Turn {
    std::string text;
    bool        from_start;  // the whole conversation, in place of what the context holds
};

class Chat {
public:
    // With --chat-template or the model's own. Throws BadInput where it can't be rendered.
    Chat(const Model & model, const Arguments & args);

    // Whether the model has a template that can be rendered.
    static bool is_possible(const Model & model);

    // Tokens of the conversation's beginning, with one start token even where the model and the template have one.
    Tokens tokenize_beginning(const Model & model, const std::string & text) const;

    // What the user may not expect of the rendering, a line each.
    const std::vector<std::string> & notes() const { return notes_; }

    // Throws BadInput for a message that can't be rendered.
    Turn ask(const std::string & message);
    // The message that was asked last is forgotten: it was not fed.
    void take_back();
    // The answer, as it stands in the context after the turn.
    void answered(const std::string & text);

private:
    std::optional<size_t> end_of_answer(const std::string & whole) const;
    std::string           render() const;

    std::string              bos_;
    std::string              eos_;
    std::string              template_;
    bool                     jinja_ = false;  // rendered as it stands, not by libllama
    std::vector<std::string> notes_;
    std::vector<Message>     messages_;
    std::string              asked_;   // rendered up to where the answer to the newest message begins
    std::string              fed_;     // the same, of the newest message that was answered
    std::string              answer_;  // to that
};

}  // namespace app
