// Chooses, for one token, the blocks to skip. Knows nothing of ggml, so it is testable without a model.
// Order: begin(), then for each block in ascending order either skips() is true and the block is left out, or the
// block is computed and, where it is an FFN and checks() is true of its layer, its similarity is told with observe().
#pragma once

#include "ffnskip/blocks.h"
#include "ffnskip/config.h"

#include <bitset>
#include <cstdint>

namespace ffnskip {

// Tells settings apart that leave other things in a memory; never 0.
uint64_t key_of(const Settings & settings);

class TokenState {
public:
    static constexpr int k_max_layers = 1024;  // llama.cpp itself stops at 512

    // A token that runs every block, but for those that no row runs: a prompt token or one within the warm-up.
    void begin_full(const Settings & settings);

    // A token that may skip. Random choices depend on the seed, the token and its position alone, so that they are
    // the same whatever else is in the batch.
    void begin(const Settings & settings, int32_t position, int32_t token);

    // A token that runs all but so many whole layers, keys and values too: the candidates from cold_s on.
    void begin_without(const Settings & settings, int n_left_out);

    bool skips(int block) const { return skip_[size_t(block)]; }
    bool skips(int il, BlockKind kind) const { return skips(block_of(il, kind)); }
    bool checks(int il) const { return check_[size_t(il)]; }

    // Skips what another token does that tripped in layer `trip_layer`, and is not checked. -1: in none so far; it may be
    // told again.
    void follow(const Settings & settings, int trip_layer);

    // `similarity` of h and h + FFN(h) at layer il; NaN never trips. True if the token trips here.
    bool observe(const Settings & settings, int il, float similarity);

    bool may_skip() const { return may_skip_; }
    bool skips_any() const { return skip_.any() || channels_; }
    // It skips attention blocks, and does not write their keys and values either: its cells of the cache stay as they were.
    bool leaves_gaps() const { return leaves_gaps_; }
    bool never_tripped() const { return check_.any(); }  // once its layers are through: it could have, and did not
    int  trip_layer() const { return trip_layer_; }      // -1: has not tripped, nor the token that it follows
    bool follows() const { return follows_; }

private:
    void skip_fixed(const Settings & settings);
    void skip_behind(const Settings & settings, int trip_layer);

    std::bitset<k_max_layers * k_block_kinds> skip_;
    std::bitset<k_max_layers>                 check_;
    bool                                      may_skip_    = false;
    bool                                      follows_     = false;
    bool                                      channels_    = false;  // leaves some out
    bool                                      leaves_gaps_ = false;
    int                                       trip_layer_  = -1;
};

}  // namespace ffnskip
