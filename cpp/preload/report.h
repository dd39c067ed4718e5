// What `ffnskip run` prints at the end, and writes to --stats-file.
#pragma once

#include "ffnskip/stats.h"

#include <string>

namespace ffnskip {

// Adds `more` to `sum`; models may differ in their number of layers.
void add(Stats & sum, const Stats & more);

std::string to_line(const Stats & stats);
std::string to_json(const Stats & stats);

// Writes the report; returns why it can't be, or nothing. A file is written whole or not at all, by way of one beside it; where
// `path` is a link, what it points to. A device or a pipe is written into. A model or a profile is not overwritten.
std::string write_report(const std::string & path, const std::string & text);

}  // namespace ffnskip
