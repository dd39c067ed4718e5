// --compare: the same prompt with and without skipping.
#pragma once

#include "arguments.h"
#include "generation.h"
#include "terminal.h"

namespace app {

// Generates dense, in a context without ffnskip, and as `engine` does, token by token in turn, with the same seed;
// prints both texts, their speed and how far they agree. Returns how the skipping one ended.
Ending compare(Engine & engine, const Arguments & args, const Tokens & prompt, Output & output);

}  // namespace app
