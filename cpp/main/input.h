// Where the user's text comes from.
#pragma once

#include "arguments.h"

#include <optional>
#include <string>

namespace app {

// The text of -p or -f, if one was given. Throws BadInput: the file, or the first byte that is not UTF-8.
std::optional<std::string> given_prompt(const Arguments & args);

// All of standard input. Throws BadInput as above.
std::string piped_prompt();

// The messages of a chat, from standard input.
class Messages {
public:
    // The next message: a line, with those that follow while they end in a backslash; nullopt at the end of the input
    // and after "/exit". Empty lines are passed over. `ask` is printed before a line is read. Throws BadInput as above.
    template <typename Ask> std::optional<std::string> next(Ask ask);

private:
    std::optional<std::string> next_line();

    size_t n_read_ = 0;  // bytes
};

template <typename Ask> std::optional<std::string> Messages::next(Ask ask) {
    std::string message;
    for (bool more = true; more;) {
        ask();
        const std::optional<std::string> line = next_line();
        if (!line || (*line == "/exit" && message.empty())) {
            return message.empty() ? std::nullopt : std::optional<std::string>(message);
        }
        const bool goes_on = !line->empty() && line->back() == '\\';
        message += goes_on ? line->substr(0, line->size() - 1) + "\n" : *line;
        more = goes_on || message.empty();
    }
    return message;
}

}  // namespace app
