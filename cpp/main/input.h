// Where the user's text comes from.
#pragma once

#include "arguments.h"
#include "terminal.h"

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
    explicit Messages(Output & output) : output_(output) {}

    // The next message: a line, with those that follow while they end in a backslash; nullopt at the end of the input
    // and after "/exit". Empty lines are passed over. A terminal gets a "> " for each line. Throws BadInput as above.
    std::optional<std::string> next();

private:
    std::optional<std::string> next_line();

    Output & output_;
    size_t   n_read_ = 0;  // bytes
};

}  // namespace app
