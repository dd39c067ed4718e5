// What was skipped: counts over the generated tokens, and a token-by-layer trace.
#pragma once

#include "ffnskip/export.h"

#include <cstdint>
#include <optional>
#include <vector>

namespace ffnskip FFNSKIP_API {

// Counts over generated tokens since the last reset; prompt tokens are not in them.
struct Stats {
    uint64_t              tokens               = 0;  // generated tokens fed back to the model, warm-up included
    uint64_t              ffn_total            = 0;  // FFN blocks of those tokens
    uint64_t              ffn_skipped          = 0;  // of these, skipped
    uint64_t              checks               = 0;  // similarities computed
    uint64_t              tokens_never_tripped = 0;  // adaptive policies: tokens that were checked and never tripped
    uint64_t              ffn_bytes_not_read   = 0;  // weights of skipped blocks that no other row of the batch needed
    std::vector<uint64_t> skipped_per_layer;         // [n_layer]

    // The same of attention blocks, which are left out whole or but for keys and values.
    uint64_t              attention_total          = 0;
    uint64_t              attention_skipped        = 0;
    uint64_t              attention_bytes_not_read = 0;
    std::vector<uint64_t> attention_skipped_per_layer;  // [n_layer]

    // Policy channels. By what products read, [n_layer, 4]: the inputs of Q, K and V, of O, of gate and up, and of down.
    std::vector<uint64_t> channels_total;  // input channels of the generated tokens, where some may be left out
    std::vector<uint64_t> channels_kept;   // of these, not left out

    // Where channels or attention are left out. Weights that are read for the generated tokens, one by one: with channels,
    // those of the products above, and of attention where any of it is left out; else of all blocks.
    uint64_t bytes_total    = 0;
    uint64_t bytes_left_out = 0;  // of these, of channels and blocks left out

    // Share of all FFN blocks of the generated tokens that was skipped, [0, 1]; 0 without tokens. Where channels or attention
    // were left out, of the weight bytes above.
    double skip_ratio() const {
        const double left_out = bytes_total == 0 ? double(ffn_skipped) : double(bytes_left_out);
        const double total    = bytes_total == 0 ? double(ffn_total) : double(bytes_total);
        return total == 0.0 ? 0.0 : left_out / total;
    }
};

// What one row left out.
struct RowStats {
    bool                  may_skip = false;
    std::vector<int32_t>  ffn;               // layers whose block it left out
    std::vector<int32_t>  attention;         // the same of attention
    std::optional<double> kept;              // policy channels: of the bytes in Stats::bytes_total, the share it read
    double                skip_ratio = 0.0;  // as Stats::skip_ratio() of this row alone
};

// One row per generated token, in the order decoded.
struct Trace {
    int                  n_layer  = 0;
    int64_t              n_tokens = 0;
    std::vector<float>   similarity;         // [n_tokens * n_layer] cosine of h and h + FFN(h); NaN where unchecked
    std::vector<uint8_t> skipped;            // [n_tokens * n_layer] 1 where the FFN block was skipped
    std::vector<uint8_t> attention_skipped;  // the same of the attention block
    std::vector<float>   kept;  // [n_tokens * n_layer * 4] share of the input's channels kept; NaN where none may be
                                // left out. Empty but for policy channels
    // Where asked for, of policy channels: [n_layer, 4, n_bins] channels of the tokens by how far they reach, what
    // channel_thresholds are compared with, in steps of the logarithm that reach_edges() has. Empty else.
    std::vector<uint64_t> reaches;
    // Where asked for: [n_tokens * n_layer] cosine of what goes into a layer and what comes out of it, where its FFN block
    // was checked; NaN elsewhere. Empty else.
    std::vector<float> layer_similarity;
};

// Where the bins of Trace::reaches begin, and the last one ends: [n_bins + 1].
std::vector<float> reach_edges();

}  // namespace ffnskip FFNSKIP_API
