// A weight matrix stored by input channel, so that a product can leave out the channels whose input is small.
//
// ggml stores W, [n_in, n_out], by output: each row holds the n_in weights of one output. Here the weights of all
// outputs lie together for each input, as the codes the model's file has, and apart from them the scales that blocks of
// inputs share. Nothing is quantised anew.
//
//   matrix   tile | tile | ... | norms            a tile: outputs, up to 16,384 of them; most matrices are one tile
//   tile     span | span | ...                    a span: 256 inputs of a K type, one block of another
//   span     d[w] dmin[w] | block | block | ...   d and dmin, 16-bit floats, of K types alone; w: outputs of the tile
//   block    low[n][w] | high[n][w] | scales[w]   n: the 32 (Q6_K: 16) inputs that share scales
//   norms    float[n_in]                          of each input's weights, the root of the sum of their squares
//
// A tile is read from front to back, less the rows of the inputs left out. Threads take slices of the outputs, without
// a reduction. What counts is that each reads long pieces: 64 bytes at random are read at a fraction of memory's speed,
// 1 KB at three quarters of it, 5 KB at nearly all. But two blocks, of one of which the next is read ahead, fit into
// L2.
//
// Outputs come in groups of 128, the last one filled up with zeros, and every array has so many bytes for each group.
// Tile t begins with group n_groups * t / n_tiles. Between the low rows of a tile is a gap of 0 to 128 bytes, so that
// none begins a multiple of 512 bytes after another: the same places of many rows are wanted at once, and would be in
// the same bank. All is aligned to 16 bytes, low rows and scales to 64. Numbers are little-endian. A file of these
// bytes can be mapped.
//
//   type                 low, for a group       high         scales of a block      value
//   Q4_0                 64 bytes of two codes               d                      d * (code - 8)
//   Q4_1                 64                                  d, m                   d * code + m
//   Q4_K                 64                                  s, t (bytes)           d * s * code - dmin * t
//   Q5_0, Q5_1, Q5_K     64                     16 (1 bit)   as Q4_0, Q4_1, Q4_K    with code - 16 in Q5_0
//   Q6_K                 64                     32 (2 bits)  s (a signed byte)      d * s * (code - 32)
//   Q8_0                 128, one code a byte                d                      d * (code - 128)
//   F16, BF16, F32       256, 256, 512                                              as it is
//
// The codes of a group are arranged for the kernels. Four channels' rows, interleaved by bytes and then by words within
// lanes of 16 bytes, give dwords of one output's four codes; where code o of 64 lies (code_byte) makes these dwords
// come out in order, for vectors of 16, 32 and 64 bytes alike. Output o + 64 is in the high nibble of output o's byte.
#pragma once

#include <ggml.h>

#include <cstddef>
#include <cstdint>

namespace ffnskip {

// How the codes, or the values, of one input are stored.
enum class ChannelValues { four_bits, five_bits, six_bits, eight_bits, f16, bf16, f32 };

// What the inputs of a block share.
enum class ChannelScales {
    none,
    d,         // 16-bit floats
    d_m,       // 16-bit floats
    k,         // bytes s and t; d and dmin of the span
    k_signed,  // signed bytes s; d of the span
};

// How ggml's own product rounds its input: to 8-bit codes with a scale for 32 inputs (a 16-bit float) or for 256, or to
// a float.
enum class ChannelInputs { q8_32, q8_256, f16, bf16, f32 };

struct ChannelFormat {
    ggml_type     type;
    ChannelValues values;
    ChannelScales scales;
    ChannelInputs inputs;
    int           block;   // inputs that share scales
    int           offset;  // what a code's zero stands for
};

// Of all that is said above, and of how many tiles a matrix has where nothing is said of it: files of other versions are
// refused.
constexpr int k_channel_layout_version = 1;

constexpr int k_channel_group     = 128;    // outputs
constexpr int k_channel_span      = 256;    // inputs of a span of a K type
constexpr int k_max_channel_tile  = 16384;  // outputs
constexpr int k_max_channel_block = 32;     // inputs

// Bytes for a group of outputs: of one input's low and high parts, of one block's scales, and of one span's.
constexpr int low_bytes(ChannelValues values) {
    return values == ChannelValues::f32          ? 512
           : values >= ChannelValues::f16        ? 256
           : values == ChannelValues::eight_bits ? 128
                                                 : 64;
}

constexpr int high_bytes(ChannelValues values) {
    return values == ChannelValues::five_bits ? 16 : values == ChannelValues::six_bits ? 32 : 0;
}

constexpr int scale_bytes(ChannelScales scales) {
    return scales == ChannelScales::none       ? 0
           : scales == ChannelScales::d_m      ? 512
           : scales == ChannelScales::k_signed ? 128
                                               : 256;
}

constexpr int span_bytes(ChannelScales scales) {
    return scales == ChannelScales::k ? 512 : scales == ChannelScales::k_signed ? 256 : 0;
}

// Where in a group the code of output o of the first 64 is.
constexpr int code_byte(int o) {
    return o % 16 / 4 * 16 + o / 16 * 4 + o % 4;
}

// Where bits of a code are: from bit `shift` of a byte on.
struct CodeBits {
    int byte, shift;
};

// Where the high bits of output o of 128 are.
constexpr CodeBits high_bits(ChannelValues values, int o) {
    const int vector = o / 16, d = o % 16;
    return values == ChannelValues::five_bits
               ? CodeBits{ d, vector }
               : CodeBits{ d / 4 % 2 * 16 + vector / 4 * 8 + d / 8 * 4 + d % 4, vector % 4 * 2 };
}

// nullptr for a type that can't be stored by channel.
const ChannelFormat * channel_format(ggml_type type);

// Where the arrays of one tile are: offsets from the matrix's beginning, and sizes, in bytes.
//
// The row of input j, the n-th of block b, begins at block(b) + n * low_stride; its high bits at block(b) + high +
// n * high_stride; the block's scales at block(b) + scales; those of the span that b is in at span(b).
struct ChannelTile {
    int64_t first, width;  // groups
    int64_t begin;
    int64_t low_stride, high, high_stride, scales;
    int64_t block_bytes, span_bytes;  // span_bytes: of the span's scales alone
    int64_t blocks_per_span;

    int64_t block(int64_t b) const;
    int64_t span(int64_t b) const;
};

// Where everything of one matrix is.
struct ChannelLayout {
    // `tile`: about how many outputs a tile has, at most 16,384; 0 for as many as suit the type. Throws
    // std::invalid_argument where the type can't be stored by channel or a size is out of range.
    ChannelLayout(ggml_type type, int64_t n_in, int64_t n_out, int64_t tile = 0);

    ChannelTile tile_of(int64_t group) const;  // the tile that has the group

    int64_t norms_offset() const;
    int64_t bytes() const;                     // of all
    int64_t bytes(int64_t n_experts) const;    // of so many matrices, one behind the other
    int64_t stride() const;                    // from one of them to the next: a multiple of 64
    int64_t bytes_read(int64_t n_kept) const;  // by a product that keeps so many channels

    const ChannelFormat * format;
    int64_t               n_in, n_out;
    int64_t               n_blocks;  // of inputs
    int64_t               n_groups;  // of outputs
    int64_t               n_tiles;
    int64_t               group_bytes;  // of all inputs' weights of one group of outputs
    int64_t               gap;          // between the low rows of a tile
};

// The norms, [n_in], of a matrix whose bytes begin at `data`.
inline const float * channel_norms(const ChannelLayout & layout, const uint8_t * data) {
    return reinterpret_cast<const float *>(data + layout.norms_offset());
}

}  // namespace ffnskip
