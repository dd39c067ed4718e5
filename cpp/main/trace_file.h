// --trace: what was looked at and skipped, token by token, as CSV.
#pragma once

#include "model.h"

#include <ffnskip/ffnskip.h>

#include <string>

namespace app {

class TraceFile {
public:
    // Throws BadInput unless a file can be written there.
    explicit TraceFile(std::string path);

    // One row per generated token: its index, its text, the similarity in each layer (empty where unchecked) and
    // whether the layer's FFN was skipped. The file appears as a whole, in place of an older one.
    void write(const ffnskip::Trace & trace, const Tokens & tokens, const Model & model) const;

private:
    std::string path_;
    std::string unfinished_;
};

}  // namespace app
