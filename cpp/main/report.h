// What is printed on standard error.
#pragma once

#include "session.h"

namespace app {

// A line that is no failure.
void note(const std::string & text);

// llama.cpp's timings, and what was skipped.
void print_summary(Session & session, double load_ms, double total_ms);

// What was skipped in each layer.
void print_layers(Session & session);

}  // namespace app
