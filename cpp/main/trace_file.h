// --trace: what was looked at and skipped, token by token, as CSV.
#pragma once

#include "model.h"

#include <ffnskip/ffnskip.h>

#include <string>
#include <vector>

namespace app {

class TraceFile {
public:
    // Throws BadInput unless a file can be written there that is none of `inputs`, under whatever name.
    TraceFile(const std::string & path, const std::vector<std::string> & inputs);

    // One row per generated token: its index, its text, the similarity in each layer (empty where unchecked) and
    // whether the layer's FFN was skipped. A file appears as a whole, in place of an older one, where links lead;
    // a device, a pipe and what standard output or error goes to are written into.
    void write(const ffnskip::Trace & trace, const Tokens & tokens, const Model & model) const;

private:
    std::string path_;
    std::string part_;  // what becomes the file; empty: it is written into
};

}  // namespace app
