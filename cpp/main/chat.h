// A conversation, rendered by libllama as the model's chat template asks for it.
#pragma once

#include "arguments.h"
#include "model.h"

#include <llama.h>

#include <list>
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
    // With --chat-template or the model's own. Throws BadInput where libllama does not recognise it.
    Chat(const Model & model, const Arguments & args);

    // Whether the model has a template that libllama recognises.
    static bool is_possible(const Model & model);

    Turn ask(const std::string & message);
    // The answer, as it stands in the context after the turn.
    void answered(const std::string & text);

private:
    struct Message {
        const char * role;
        std::string  content;
    };

    std::optional<size_t> end_of_answer(const std::string & whole) const;
    std::string           render() const;

    std::string          template_;
    std::vector<Message> messages_;
    std::string          fed_;     // rendered up to where the newest answer begins
    std::string          answer_;  // the newest
};

}  // namespace app
