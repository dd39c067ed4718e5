// The statistics of a run, as they are printed and written.
#pragma once

#include "ffnskip/stats.h"

#include <cstddef>
#include <string>

namespace ffnskip {

// Adds `more` to `sum`; models may differ in their number of layers.
void add(Stats & sum, const Stats & more);

// What skip_ratio() is a share of: "FFN blocks skipped", or where channels may be left out "FFN weight bytes left out".
std::string what_is_skipped(const Stats & stats);
// "up 75 %, down 50 %": of the channels of a layer's inputs, how many were kept; empty where none may be left out.
std::string kept_in_layer(const Stats & stats, size_t layer);

std::string to_line(const Stats & stats);
std::string to_json(const Stats & stats);

}  // namespace ffnskip
