// What to skip. Method: FFN-SkipLLM (arXiv:2404.03865), section 3.2 and Algorithm 1.
//
// A Config is what a user asks for; it knows no model. resolve() turns it into Settings, every value of which
// is concrete and in range for one model. Both are plain values, safe to copy and to share between threads.
#pragma once

#include "ffnskip/export.h"

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace ffnskip FFNSKIP_API {

enum class Policy {
    dense,     // plain llama.cpp
    ffn_skip,  // `layers`, and Algorithm 1: once the similarity reaches the threshold, skip the next max_skip FFN blocks
    random,    // max_skip FFN blocks a token, chosen anew for each
    channels,     // `layers`, and of all other blocks the input channels that reach least
    skip_decode,  // whole layers, attention too, the more the further a sequence has come (Del Corro et al. 2023)
};

// Whose channels Policy::channels leaves out.
enum class Tensors : uint8_t {
    ffn,  // the inputs of gate and up, and of down
    all,  // and those of Q, K and V, and of attention's output matrix
};

// Where Policy::random chooses from.
enum class Region {
    any,       // the paper's Baseline 1: every layer but the last
    adaptive,  // the paper's Baseline 2: the adaptive region
};

// What becomes of positions that skipping tokens filled, when a prompt follows them: used as they are, or computed again in
// full first. No part of a Config.
enum class Reuse : uint8_t { all, full };

// Generated tokens that run in full at the beginning of each sequence, and tell what thresholds its channels have, where
// none are given.
constexpr int k_channel_tokens = 16;

const char * policy_name(Policy policy);
const char * region_name(Region region);
const char * tensors_name(Tensors tensors);
Region       region_from_name(const std::string & name);   // throws std::invalid_argument: the name, and the known ones
Tensors      tensors_from_name(const std::string & name);  // likewise
Reuse        reuse_from_name(const std::string & name);    // likewise

struct Config {
    Policy policy        = Policy::ffn_skip;
    double sim_threshold = 0.9;  // cosine similarity that trips, dimensionless; above 1 never trips; not NaN
    std::optional<int> cold_s;   // layers [0, cold_s) never skip       default: round(n_layer / 8), at least 1
    std::optional<int> cold_e;   // layers [cold_e, n_layer) never skip default: n_layer - the same
    int                warm_up_index = 30;  // generated tokens per sequence that run in full first, >= 0
    std::optional<double>
        skip_ratio;  // target share of all FFN blocks, [0, 1], unused where max_skip is given: default 1/4
                     // channels: of the weight bytes of `tensors`, unused where thresholds are: default 1/3
                     // skip_decode: of the layers, on average while they fall, unused where min_layers is given: 1/4
    std::optional<int> max_skip;  // k: FFN blocks skipped per token, >= 0, those of `layers` not among them
                                  // default: round(skip_ratio * n_layer), less those of `layers`
    std::optional<std::vector<int>>
        layers;  // ffn_skip, channels: layers whose FFN is always skipped; with max_skip 0 no other is
    // All but dense: layers whose attention is left out by tokens that may skip: queries, scores and output. Keys and values
    // are written, for others to read.
    std::optional<std::vector<int>> attention_layers;
    // ffn_skip with max_skip 0, channels: `layers` and `attention_layers` are left out of every row, of prompts and within
    // the warm-up too. Of attention, that is all: no keys and values are written.
    bool                               every_row = false;
    std::optional<std::vector<double>> layer_thresholds;  // ffn_skip: [n_layer] for sim_threshold; infinite: unchecked
    int                                check_stride = 1;  // every n-th layer of the adaptive region is checked, >= 1
    int check_interval = 1;  // ffn_skip: every n-th generated token of a sequence is checked, >= 1; those between skip
                             // what the one before them did
    std::optional<std::vector<double>> channel_thresholds;  // channels: [n_layer, 4] for the inputs of QKV, O, up
                                                            // and down: |v[j]| |W[:, j]| below which channel
                                                            // j is left out; 0: none is (see docs/channels.md)
    Tensors            tensors = Tensors::ffn;              // channels, where no thresholds are given
    std::optional<int> min_layers;        // skip_decode: layers that tokens from position budget_decay on run, >= 1
                                          // default: n_layer - round(2 * skip_ratio * n_layer)
    int      budget_decay = 512;          // skip_decode: positions over which the layers fall from all to these, >= 1
    Region   region       = Region::any;  // random
    uint64_t seed         = 0;            // random

    // Throws std::invalid_argument (field, value, allowed range) for what is wrong with any model.
    void validate() const;

    // Every row that may skip skips the same blocks, and nothing is asked of it.
    bool is_static() const { return policy == Policy::ffn_skip && max_skip == 0; }
};

// Throws std::invalid_argument: the name, and the known ones. Names of older versions stand for a policy and a field:
//     fixed                   ffn_skip with `layers`, which must be given, and max_skip 0
//     fixed_plus_ffn_skip     ffn_skip with `layers`, which must be given
//     ffn_skip_per_layer      ffn_skip with `layer_thresholds`, which must be given
//     random_adaptive_region  random with Region::adaptive
// And the method of another paper (Men et al. 2024):
//     short_gpt               whole layers of every row: ffn_skip with `layers`, which must be given, max_skip 0,
//                             attention_layers the same, and every_row
// What must be given is an empty list until it is, and validate() refuses that.
void set_policy(Config & config, const std::string & name);
// Whether that is what `config` says.
bool is_short_gpt(const Config & config);

// What a Config means for one model.
struct Settings {
    Policy               policy        = Policy::dense;
    int                  cold_s        = 0;
    int                  cold_e        = 0;
    int                  warm_up_index = 0;
    int                  max_skip      = 0;  // beside those always skipped
    uint64_t             seed          = 0;
    std::vector<uint8_t> candidate;  // [n_layer] 1 where the policy may skip the FFN of the layer
    std::vector<uint8_t> always;     // [n_layer] 1 where every token that may skip does; of the candidates
    std::vector<uint8_t> checked;    // [n_layer] 1 where the similarity may trip; of the candidates
    std::vector<float>   threshold;  // [n_layer] the similarity that does
    int                  n_always       = 0;
    int                  check_interval = 1;  // generated tokens from one that is checked to the next
    std::vector<uint8_t> attention;           // [n_layer] 1 where tokens that may skip leave attention out
    bool                 every_row = false;   // leaves out what is `always` and its `attention`, keys and values too
    std::vector<uint8_t> channels;            // [n_layer * 4] 1 where channels of the input may be left out
    std::vector<float>   channel_threshold;   // [n_layer * 4] below which they are; empty: found for each sequence,
    double               channel_ratio = 0;   // so that this share of the weight bytes is not read
    int                  max_left_out  = 0;   // skip_decode: layers, of the candidates, those from cold_s on first,
    int                  budget_decay  = 1;   // reached at this position

    // skip_decode: layers that a generated token at this position leaves out, or more where one before it did.
    int n_left_out(int32_t position) const;
    // Whether the row at `position` may skip, of a text whose tokens from `n_prompt` on are generated.
    bool may_skip(int32_t position, int32_t n_prompt) const;

    // Policy channels: generated tokens that tell each sequence its thresholds. All of them need an output, or what they are
    // like in the last layer is not seen.
    int n_observed() const { return leaves_channels_out() && channel_threshold.empty() ? warm_up_index : 0; }

    int  n_layer() const { return int(candidate.size()); }
    bool leaves_channels_out() const { return std::find(channels.begin(), channels.end(), 1) != channels.end(); }
    bool leaves_attention_out() const { return std::find(attention.begin(), attention.end(), 1) != attention.end(); }
    bool skips_anything() const {
        return n_always > 0 || max_skip > 0 || leaves_channels_out() || leaves_attention_out();
    }
};

// `skippable[il]`: layer il has an FFN block that can be skipped. `no_attention[il]`: why its attention can't be left out;
// empty: it can. Throws std::invalid_argument (field, value, allowed range) where `config` does not fit the model.
Settings resolve(const Config & config, const std::vector<uint8_t> & skippable,
                 const std::vector<std::string> & no_attention);

}  // namespace ffnskip FFNSKIP_API
