// The blocks of a model's layers, and what its matrices read, as Controller::probe() found them.
#pragma once

#include "ffnskip/export.h"

#include <cstdint>
#include <string>
#include <vector>

namespace ffnskip FFNSKIP_API {

// What a layer adds to the residual, one after the other.
enum class BlockKind : uint8_t { attention, ffn };

constexpr int          k_block_kinds                     = 2;
constexpr const char * k_block_kind_names[k_block_kinds] = { "attention", "ffn" };

// Blocks are numbered in the order they run in.
constexpr int block_of(int layer, BlockKind kind) {
    return layer * k_block_kinds + int(kind);
}
constexpr int layer_of(int block) {
    return block / k_block_kinds;
}
constexpr BlockKind kind_of(int block) {
    return BlockKind(block % k_block_kinds);
}

struct BlockWeight {
    std::string name;  // "blk.3.ffn_down.weight"
    std::string type;  // "q4_0"
    uint64_t    n_elements = 0;
    uint64_t    bytes      = 0;  // of the whole tensor
};

struct Block {
    int         layer     = -1;
    BlockKind   kind      = BlockKind::ffn;
    bool        skippable = false;
    std::string why_not;                // where it is not
    std::string form;                   // of FFNs: "gated", "plain", "experts", "experts + shared"; of attention:
                                        // "separate", "fused" (one matrix for Q, K and V), "latent"
    std::string              residual;  // "sequential", "in place", "parallel" (docs/how-it-works.md)
    uint64_t                 bytes_per_token = 0;  // of weights read for one token; of experts, those chosen
    uint64_t                 bytes_of_cache  = 0;  // of these, read for keys and values
    std::vector<BlockWeight> weights;              // the block's own, and norms computed for it alone
};

// An input of matrices of a layer, whose channels policy `channels` may leave out.
struct LayerInput {
    int                      layer = -1;
    std::string              kind;     // "qkv": of Q, K and V; "o": of attention's output matrix; "up"; "down"
    std::string              why_not;  // channels can't be left out of it; empty: they can
    uint64_t                 n_channels      = 0;
    uint64_t                 bytes           = 0;  // of memory for the weights by channel; 0 where there can't be any
    uint64_t                 bytes_per_token = 0;  // of weights that read it for one token; of experts, those chosen
    std::vector<BlockWeight> weights;              // that read it
};

}  // namespace ffnskip FFNSKIP_API
