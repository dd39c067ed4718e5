// What was skipped: counts over the generated tokens, and a token-by-layer trace.
#pragma once

#include "ffnskip/export.h"

#include <cstdint>
#include <vector>

namespace ffnskip FFNSKIP_API {

// Counts over generated tokens since the last reset; prompt tokens are not in them.
struct Stats {
    uint64_t              tokens               = 0;  // generated tokens fed back to the model, warm-up included
    uint64_t              ffn_total            = 0;  // FFN blocks of those tokens
    uint64_t              ffn_skipped          = 0;  // of these, skipped
    uint64_t              checks               = 0;  // similarities computed
    uint64_t              tokens_never_tripped = 0;  // adaptive policies: tokens that could trip and never did
    uint64_t              ffn_bytes_not_read   = 0;  // weights of skipped blocks that no other row of the batch needed
    std::vector<uint64_t> skipped_per_layer;         // [n_layer]

    // Share of all FFN blocks of the generated tokens that was skipped, [0, 1]; 0 without tokens.
    double skip_ratio() const { return ffn_total == 0 ? 0.0 : double(ffn_skipped) / double(ffn_total); }
};

// One row per generated token, in the order decoded.
struct Trace {
    int                  n_layer  = 0;
    int64_t              n_tokens = 0;
    std::vector<float>   similarity;  // [n_tokens * n_layer] cosine of h and h + FFN(h); NaN where unchecked
    std::vector<uint8_t> skipped;     // [n_tokens * n_layer] 1 where the FFN block was skipped
};

}  // namespace ffnskip FFNSKIP_API
