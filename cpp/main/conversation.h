// Chatting: messages in, answers out.
#pragma once

#include "arguments.h"
#include "chat.h"
#include "generation.h"
#include "terminal.h"

#include <optional>
#include <string>

namespace app {

// Tokens of a conversation's beginning, with one BOS even where the template has its own.
Tokens tokenize_beginning(const Model & model, const std::string & text);

// Answers `first`, then what standard input holds, until it ends or the context is full; returns how the last answer
// ended. Throws BadInput where the first message doesn't fit the context.
Ending converse(Engine & engine, Chat & chat, const Arguments & args, std::optional<std::string> first,
                Output & output);

}  // namespace app
