// ggml's blocks of quantised weights, taken apart.
#pragma once

#include "channel_layout.h"

#include <cstdint>
#include <cstring>

namespace ffnskip {

// Where numbers lie in a file's rows they need not be aligned.
inline uint16_t read16(const uint8_t * from) {
    uint16_t value;
    std::memcpy(&value, from, sizeof(value));
    return value;
}

inline uint32_t read32(const uint8_t * from) {
    uint32_t value;
    std::memcpy(&value, from, sizeof(value));
    return value;
}

// One output's weights of up to 256 inputs: weight = scale * (code - offset) + minimum, as channel_layout.h has it. Of
// the scales those are there that the format has.
struct ChannelSpan {
    static constexpr int k_blocks = k_channel_span / 16;

    uint8_t  code[k_channel_span];
    uint16_t d[k_blocks], m[k_blocks];
    uint8_t  s[k_blocks], t[k_blocks];
    uint16_t span_d, span_dmin;
};

// `n` inputs, a multiple of the type's blocks and of K types 256, that begin at `from`.
void unpack_channels(const ChannelFormat & format, const uint8_t * from, int64_t n, ChannelSpan & to);

}  // namespace ffnskip
