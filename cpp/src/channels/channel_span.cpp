#include "channel_span.h"

#include <cstring>

namespace ffnskip {
namespace {

// d [m] [32 high bits] 16 bytes of two codes, 16 inputs apart; Q8_0: d, 32 signed bytes.
void unpack_block(const ChannelFormat & format, const uint8_t * from, uint8_t * code, uint16_t & d, uint16_t & m) {
    d = read16(from);
    from += 2;
    if (format.scales == ChannelScales::d_m) {
        m = read16(from);
        from += 2;
    }
    if (format.values == ChannelValues::eight_bits) {
        for (int j = 0; j < 32; ++j) {
            code[j] = uint8_t(from[j] + 128);
        }
        return;
    }
    uint32_t high = 0;
    if (format.values == ChannelValues::five_bits) {
        high = read32(from);
        from += 4;
    }
    for (int j = 0; j < 16; ++j) {
        code[j]      = uint8_t((from[j] & 15) | (high >> j & 1) << 4);
        code[j + 16] = uint8_t(from[j] >> 4 | (high >> (j + 16) & 1) << 4);
    }
}

// d, dmin, 8 pairs of s and t in 6 bits, [a high bit of each: bit i of byte j is that of input 32 * i + j], then 32
// bytes for each 64 inputs.
void unpack_q4_k_q5_k(const ChannelFormat & format, const uint8_t * from, ChannelSpan & to) {
    to.span_d              = read16(from);
    to.span_dmin           = read16(from + 2);
    const uint8_t * packed = from + 4;
    for (int b = 0; b < 8; ++b) {
        to.s[b] = b < 4 ? packed[b] & 63 : uint8_t((packed[b + 4] & 15) | packed[b - 4] >> 6 << 4);
        to.t[b] = b < 4 ? packed[b + 4] & 63 : uint8_t(packed[b + 4] >> 4 | packed[b] >> 6 << 4);
    }
    const bool      five = format.values == ChannelValues::five_bits;
    const uint8_t * high = from + 16;
    const uint8_t * low  = from + (five ? 48 : 16);
    for (int b = 0; b < 8; ++b) {
        for (int j = 0; j < 32; ++j) {
            to.code[b * 32 + j] =
                uint8_t((low[b / 2 * 32 + j] >> b % 2 * 4 & 15) | (five ? (high[j] >> b & 1) << 4 : 0));
        }
    }
}

// For each half of 128 inputs 64 bytes of low and 32 of high bits; then 16 signed bytes s, and d.
void unpack_q6_k(const uint8_t * from, ChannelSpan & to) {
    for (int quarter = 0; quarter < 8; ++quarter) {
        const uint8_t * low   = from + quarter / 4 * 64 + quarter % 2 * 32;
        const uint8_t * high  = from + 128 + quarter / 4 * 32;
        const int       shift = quarter % 4;
        for (int j = 0; j < 32; ++j) {
            to.code[quarter * 32 + j] = uint8_t((low[j] >> shift / 2 * 4 & 15) | (high[j] >> shift * 2 & 3) << 4);
        }
    }
    std::memcpy(to.s, from + 192, 16);
    to.span_d = read16(from + 208);
}

}  // namespace

void unpack_channels(const ChannelFormat & format, const uint8_t * from, int64_t n, ChannelSpan & to) {
    if (format.scales == ChannelScales::k) {
        unpack_q4_k_q5_k(format, from, to);
    } else if (format.scales == ChannelScales::k_signed) {
        unpack_q6_k(from, to);
    } else {
        for (int64_t b = 0; b < n / 32; ++b) {
            unpack_block(format, from + b * int64_t(ggml_type_size(format.type)), to.code + b * 32, to.d[b], to.m[b]);
        }
    }
}

}  // namespace ffnskip
