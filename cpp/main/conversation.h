// Chatting: messages in, answers out.
#pragma once

#include "arguments.h"
#include "chat.h"
#include "generation.h"
#include "terminal.h"

#include <optional>
#include <string>

namespace app {

// Answers `first`, then what standard input holds, until it ends; returns how the answer ended that ended the chat. What
// can't be answered, be it that the context has no room, is said in a note; on a terminal the chat then goes on, otherwise
// it ends, and for the first message throws BadInput.
Ending converse(Engine & engine, Chat & chat, const Arguments & args, std::optional<std::string> first,
                Output & output);

}  // namespace app
