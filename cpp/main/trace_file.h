// --trace: what was looked at and skipped, token by token, as CSV.
#pragma once

#include "model.h"

#include <ffnskip/ffnskip.h>

#include <string>
#include <vector>

namespace app {

// Throws BadInput unless a file can be written there that is none of `inputs`, under whatever name.
void require_trace_file(const std::string & path, const std::vector<std::string> & inputs);

// One row per generated token: its index, its text, the similarity in each layer (empty where unchecked), whether the
// layer's FFN was skipped, and with policy `channels` the share kept of the channels of each layer's inputs, kind by kind
// (empty where none may be left out).
void write_trace(const std::string & path, const ffnskip::Trace & trace, const Tokens & tokens, const Model & model);

}  // namespace app
