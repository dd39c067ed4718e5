// What is printed on standard error.
#pragma once

#include "session.h"

#include <optional>
#include <string>

namespace app {

// A line that is no failure.
void note(const std::string & text);

// What the controller has to say of its settings, if it has not said it before.
void print_notice(Session & session);

// `text` with its line ends written out: messages quote whatever they like and stay one line.
std::string one_line(const std::string & text);

// llama.cpp's timings, the seed if there is one, and what was skipped.
void print_summary(Session & session, std::optional<uint32_t> seed, double load_ms, double total_ms);

// What was skipped in each layer.
void print_layers(Session & session);

}  // namespace app
