// Chatting: messages in, answers out.
#pragma once

#include "arguments.h"
#include "chat.h"
#include "generation.h"
#include "terminal.h"

#include <optional>
#include <string>

namespace app {

// Answers `first`, then what standard input holds, until it ends; returns how the chat ended. Where the context has no
// room for a message, a note repeats it: on a terminal the chat then goes on with another, elsewhere it ends. Throws
// BadInput for a message that can't be passed on or is too long to begin with; on a terminal that is a note too.
Ending converse(Engine & engine, Chat & chat, const Arguments & args, std::optional<std::string> first,
                Output & output);

}  // namespace app
