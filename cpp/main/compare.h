// --compare: the same prompt with and without skipping.
#pragma once

#include "arguments.h"
#include "generation.h"
#include "terminal.h"

namespace app {

// Generates dense, then as `args.config` says, with the same seed; prints both texts, their speed and how far they
// agree. Returns how the last one ended.
Ending compare(Engine & engine, const Arguments & args, const Tokens & prompt, Output & output);

}  // namespace app
