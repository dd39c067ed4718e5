// The statistics of a run, as they are printed and written.
#pragma once

#include "ffnskip/stats.h"

#include <string>

namespace ffnskip {

// Adds `more` to `sum`; models may differ in their number of layers.
void add(Stats & sum, const Stats & more);

std::string to_line(const Stats & stats);
std::string to_json(const Stats & stats);

}  // namespace ffnskip
