#include "channel_layout.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace ffnskip {
namespace {

using Values = ChannelValues;
using Scales = ChannelScales;
using Inputs = ChannelInputs;

constexpr ChannelFormat k_formats[] = {
    { GGML_TYPE_Q4_0, Values::four_bits, Scales::d, Inputs::q8_32, 32, 8 },
    { GGML_TYPE_Q4_1, Values::four_bits, Scales::d_m, Inputs::q8_32, 32, 0 },
    { GGML_TYPE_Q4_K, Values::four_bits, Scales::k, Inputs::q8_256, 32, 0 },
    { GGML_TYPE_Q5_0, Values::five_bits, Scales::d, Inputs::q8_32, 32, 16 },
    { GGML_TYPE_Q5_1, Values::five_bits, Scales::d_m, Inputs::q8_32, 32, 0 },
    { GGML_TYPE_Q5_K, Values::five_bits, Scales::k, Inputs::q8_256, 32, 0 },
    { GGML_TYPE_Q6_K, Values::six_bits, Scales::k_signed, Inputs::q8_256, 16, 32 },
    { GGML_TYPE_Q8_0, Values::eight_bits, Scales::d, Inputs::q8_32, 32, 128 },
    { GGML_TYPE_F16, Values::f16, Scales::none, Inputs::f16, 32, 0 },
    { GGML_TYPE_BF16, Values::bf16, Scales::none, Inputs::bf16, 32, 0 },
    { GGML_TYPE_F32, Values::f32, Scales::none, Inputs::f32, 32, 0 },
};

// Of a tile's row, by default: of a block of 32, two thirds of them kept, 256 KB.
constexpr int64_t k_row_bytes = 12288;

int64_t ceil_div(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

// Of one input and a group of outputs.
int64_t row_bytes(const ChannelFormat & format) {
    return low_bytes(format.values) + high_bytes(format.values);
}

int64_t blocks_per_span(const ChannelFormat & format) {
    return span_bytes(format.scales) > 0 ? k_channel_span / format.block : 1;
}

}  // namespace

const ChannelFormat * channel_format(ggml_type type) {
    const auto * found =
        std::find_if(std::begin(k_formats), std::end(k_formats), [&](auto & f) { return f.type == type; });
    return found == std::end(k_formats) ? nullptr : found;
}

ChannelLayout::ChannelLayout(ggml_type type, int64_t n_in, int64_t n_out, int64_t tile)
    : format(channel_format(type)), n_in(n_in), n_out(n_out) {
    const std::string name = ggml_type_name(type);
    if (!format) {
        std::string known;
        for (const ChannelFormat & f : k_formats) {
            known += (known.empty() ? "" : ", ") + std::string(ggml_type_name(f.type));
        }
        throw std::invalid_argument("weights of type " + name +
                                    " can't be stored by channel; types that can: " + known);
    }
    const std::string shape = std::to_string(n_in) + " x " + std::to_string(n_out);
    if (n_in < 1 || n_out < 1 || n_in > INT32_MAX || n_out > INT32_MAX) {
        throw std::invalid_argument("a matrix of " + shape + " weights can't be stored by channel");
    }
    if (n_in % ggml_blck_size(type) != 0) {
        throw std::invalid_argument("a matrix of " + shape + " weights of type " + name +
                                    " is not possible: the first is not a multiple of " +
                                    std::to_string(ggml_blck_size(type)));
    }
    if (tile < 0 || tile > k_max_channel_tile) {
        throw std::invalid_argument("a tile has 0 to " + std::to_string(k_max_channel_tile) + " outputs, not " +
                                    std::to_string(tile));
    }
    n_blocks = ceil_div(n_in, format->block);
    n_groups = ceil_div(n_out, k_channel_group);
    if (tile == 0) {
        tile = std::min<int64_t>(k_max_channel_tile, k_row_bytes * k_channel_group / low_bytes(format->values));
    }
    // An even number of tiles, so that they divide among two threads.
    n_tiles = std::max<int64_t>(1, (n_out + tile / 2) / tile);
    n_tiles += n_tiles > 1 ? n_tiles % 2 : 0;
    n_tiles = std::min(n_groups, std::max(n_tiles, ceil_div(n_groups, k_max_channel_tile / k_channel_group)));

    group_bytes = n_blocks * (format->block * row_bytes(*format) + scale_bytes(format->scales)) +
                  n_blocks / blocks_per_span(*format) * span_bytes(format->scales);
    // Tiles have one of two widths.
    const int64_t low = low_bytes(format->values), narrow = n_groups / n_tiles, wide = ceil_div(n_groups, n_tiles);
    for (gap = 0; (narrow * low + gap) % 512 == 0 || (wide * low + gap) % 512 == 0;) {
        gap += 64;
    }
}

ChannelTile ChannelLayout::tile_of(int64_t group) const {
    const int64_t t      = ((group + 1) * n_tiles - 1) / n_groups;
    ChannelTile   tile   = {};
    tile.first           = n_groups * t / n_tiles;
    tile.width           = n_groups * (t + 1) / n_tiles - tile.first;
    tile.begin           = tile.first * group_bytes + t * n_blocks * format->block * gap;
    tile.low_stride      = tile.width * low_bytes(format->values) + gap;
    tile.high            = format->block * tile.low_stride;
    tile.high_stride     = tile.width * high_bytes(format->values);
    tile.scales          = tile.high + format->block * tile.high_stride;
    tile.block_bytes     = tile.scales + tile.width * scale_bytes(format->scales);
    tile.span_bytes      = tile.width * span_bytes(format->scales);
    tile.blocks_per_span = blocks_per_span(*format);
    return tile;
}

int64_t ChannelTile::span(int64_t b) const {
    return begin + b / blocks_per_span * (span_bytes + blocks_per_span * block_bytes);
}

int64_t ChannelTile::block(int64_t b) const {
    return span(b) + span_bytes + b % blocks_per_span * block_bytes;
}

int64_t ChannelLayout::norms_offset() const {
    return n_groups * group_bytes + n_tiles * n_blocks * format->block * gap;
}

int64_t ChannelLayout::bytes() const {
    return norms_offset() + n_in * int64_t(sizeof(float));
}

int64_t ChannelLayout::bytes(int64_t n_experts) const {
    return (n_experts - 1) * stride() + bytes();
}

int64_t ChannelLayout::stride() const {
    return ceil_div(bytes(), 64) * 64;
}

int64_t ChannelLayout::bytes_read(int64_t n_kept) const {
    return n_groups * (group_bytes - (n_blocks * format->block - n_kept) * row_bytes(*format));
}

}  // namespace ffnskip
