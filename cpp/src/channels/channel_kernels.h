// Products of one input vector, or a few, with a matrix stored by channel, over the channels kept. A file for each
// instruction set, all with this contract; which one this CPU takes is found at run time.
//
//   select    which channels to keep: a bit for each
//   prepare   the input as ggml's own product would round it, listed by blocks, for the channels kept
//   multiply  y = sum over kept channels j of v[j] * W[:, j], for a slice of the outputs
//
// Several inputs share what is read of the matrix: each block is computed for all of them before the next one. An input's
// outputs are what they are for it alone, bit for bit.
//
// None of them allocates or locks. With 8-bit input the sums within a block are integers and exact, as in ggml; between
// blocks floats are added in the order of the inputs. So all kernels agree with each other, and with ggml's dense
// product of an input that is zero where a channel is left out, up to the rounding of floats. An input that is not a
// number is kept, and makes outputs that are not numbers.
#pragma once

#include "channel_layout.h"

#include <vector>

namespace ffnskip {

// The channels kept of one input vector, block by block. Those of block b are at [begin[b], begin[b + 1]) of the lists,
// in ascending order, filled up to a multiple of 4 with a channel that is there already, with value 0.
struct KeptChannels {
    int32_t * begin;     // [n_blocks + 1]
    uint8_t * channel;   // number within its block
    int8_t *  code;      // the input in 8 bits, of types that have codes
    float *   value;     // and of the others
    float *   scale;     // [n_blocks] what a step of `code` stands for
    float *   sum;       // [n_blocks] scale * code_sum, as ggml rounds it
    int32_t * code_sum;  // [n_blocks]
};

// Inputs of one multiplication.
constexpr int k_max_channel_rows = 8;

struct ChannelKernels {
    const char * name;
    // Up to so many rows are faster than ggml's own product of all of them, as far as that was measured.
    int few_rows;

    // Bit j % 32 of kept[j / 32] says whether |v[j]| * norms[j] >= threshold; bits past n_in are 0. Returns how many
    // are.
    int64_t (*select)(const float * v, const float * norms, float threshold, int64_t n_in, uint32_t * kept);

    void (*prepare)(const ChannelLayout & layout, const float * v, const uint32_t * kept, const KeptChannels & to);

    // Outputs [first, last) * 128 of each row of y, up to n_out; nothing else of y, [n_out, n_rows], is touched. `kept`:
    // of each of up to k_max_channel_rows. `data` is aligned to 64.
    void (*multiply)(const ChannelLayout & layout, const uint8_t * data, const KeptChannels * kept, int n_rows,
                     int64_t first, int64_t last, float * y);
};

// The fastest that this CPU runs; and all that it runs, that one first, plain C++ last.
const ChannelKernels &                      channel_kernels();
const std::vector<const ChannelKernels *> & all_channel_kernels();

// Groups of outputs for thread `ith` of `nth`: [first, last).
struct ChannelSlice {
    int64_t first, last;
};

inline ChannelSlice channel_slice(const ChannelLayout & layout, int ith, int nth) {
    return { layout.n_groups * ith / nth, layout.n_groups * (ith + 1) / nth };
}

// Memory for the channels kept of inputs of up to n_in channels, of any format; one for each thread.
class ChannelInput {
public:
    explicit ChannelInput(int64_t n_in);
    ChannelInput(ChannelInput &&)             = default;
    ChannelInput & operator=(ChannelInput &&) = default;

    // Selects by threshold, or takes bits that are given, [ceil(n_in / 32)], and prepares. Returns how many channels
    // are kept.
    int64_t keep(const ChannelKernels & kernels, const ChannelLayout & layout, const float * v, const float * norms,
                 float threshold);
    void    keep(const ChannelKernels & kernels, const ChannelLayout & layout, const float * v, const uint32_t * kept);

    const KeptChannels & kept() const { return kept_; }

private:
    std::vector<uint32_t> bits_;
    std::vector<int32_t>  integers_;
    std::vector<float>    floats_;
    std::vector<uint8_t>  bytes_;
    KeptChannels          kept_;
};

}  // namespace ffnskip
