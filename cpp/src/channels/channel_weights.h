// Building a matrix by channel from its rows as they are in a model's file.
#pragma once

#include "channel_layout.h"

#include <functional>

namespace ffnskip {

// Writes rows [first, first + n) of the matrix to `to`, as they are in the file: ggml_row_size(type, n_in) bytes for
// each output. Called by several threads at once.
using ChannelSource = std::function<void(int64_t first, int64_t n, uint8_t * to)>;

// Fills layout.bytes() bytes at `to`, aligned to 64, which are zeros. The same bytes whatever the number of threads.
// What the source throws is passed on, once all threads have stopped.
void build_channels(const ChannelLayout & layout, const ChannelSource & source, int n_threads, uint8_t * to);

// The same for the matrices of so many experts, whose rows come one matrix behind the other: layout.bytes(n_experts).
void build_experts(const ChannelLayout & layout, int64_t n_experts, const ChannelSource & source, int n_threads,
                   uint8_t * to);

// The weight of one input and output, as ggml would dequantise it. For checks: slow.
float channel_weight(const ChannelLayout & layout, const uint8_t * data, int64_t input, int64_t output);

}  // namespace ffnskip
