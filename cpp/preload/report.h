// What `ffnskip run` prints at the end, and writes to --stats-file.
#pragma once

#include "ffnskip/stats.h"

#include <string>

namespace ffnskip {

// Adds `more` to `sum`; models may differ in their number of layers.
void add(Stats & sum, const Stats & more);

std::string to_line(const Stats & stats);
std::string to_json(const Stats & stats);

// Writes a file by way of a temporary one beside it; false, with errno set, where that fails.
bool replace_file(const std::string & path, const std::string & text);

}  // namespace ffnskip
