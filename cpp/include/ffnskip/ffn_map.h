// The FFN block of each layer of a model, as Controller::probe() found it.
#pragma once

#include "ffnskip/export.h"

#include <cstdint>
#include <string>
#include <vector>

namespace ffnskip FFNSKIP_API {

struct FfnWeight {
    std::string name;  // "blk.3.ffn_down.weight"
    std::string type;  // "q4_0"
    uint64_t    n_elements = 0;
    uint64_t    bytes      = 0;  // of the whole tensor
};

struct FfnBlock {
    int                    layer     = -1;
    bool                   skippable = false;
    std::string            why_not;              // where it is not
    std::string            kind;                 // "gated", "plain", "experts", "experts + shared"
    std::string            residual;             // "sequential", "in place", "parallel" (docs/how-it-works.md)
    uint64_t               bytes_per_token = 0;  // of weights read for one token; of experts, those chosen
    std::vector<FfnWeight> weights;              // the block's own, and norms computed for it alone
};

}  // namespace ffnskip FFNSKIP_API
