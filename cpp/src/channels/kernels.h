// What the kernels of all instruction sets have in common: the rounding of the input, and the walk over a matrix. Each
// file of kernels includes this for itself, compiled for its own instruction set. So all is in the unnamed namespace,
// and nothing inline of the standard library is used: of that the linker takes one file's copy for all, which another
// CPU may not run.
#pragma once

#include "channel_kernels.h"
#include "half.h"

#include <string.h>

#ifdef _MSC_VER
#include <intrin.h>
#define FFNSKIP_INLINE __forceinline
#else
#define FFNSKIP_INLINE inline __attribute__((always_inline))
#endif

namespace ffnskip {

extern const ChannelKernels k_plain_kernels, k_avx2_kernels, k_avx512_kernels, k_neon_kernels;

namespace {

template <typename T> FFNSKIP_INLINE T min_of(T a, T b) {
    return a < b ? a : b;
}

// Of bits that are not all 0.
FFNSKIP_INLINE int lowest_bit(uint32_t bits) {
#ifdef _MSC_VER
    unsigned long at;
    _BitScanForward(&at, bits);
    return int(at);
#else
    return __builtin_ctz(bits);
#endif
}

// ---- select ----

// The channels from `j`, a multiple of 32, on, one by one.
inline int64_t select_rest(const float * v, const float * norms, float threshold, int64_t j, int64_t n_in,
                           uint32_t * kept) {
    int64_t n = 0;
    for (; j < n_in; j += 32) {
        uint32_t bits = 0;
        for (int64_t i = 0; i < min_of<int64_t>(32, n_in - j); ++i) {
            const float reach = (v[j + i] < 0.0f ? -v[j + i] : v[j + i]) * norms[j + i];
            const bool  keep  = !(reach < threshold);
            bits |= uint32_t(keep) << i;
            n += keep;
        }
        kept[j / 32] = bits;
    }
    return n;
}

// ---- prepare ----

// The largest |v|; bits of floats order like their absolute values, and not-a-number comes last. (As floats, compilers
// would not take several at once.)
inline float largest(const float * v, int n) {
    int32_t bits = 0;
    for (int i = 0; i < n; ++i) {
        const int32_t other = bits_as<int32_t>(v[i]) & 0x7fffffff;
        bits                = other > bits ? other : bits;
    }
    return bits_as<float>(bits);
}

// The n <= 32 inputs whose bits are set, the others 0.
inline void mask_inputs(const float * v, uint32_t kept, int n, float * to) {
    for (int i = 0; i < n; ++i) {
        to[i] = bits_as<float>(bits_as<uint32_t>(v[i]) & (0u - (kept >> i & 1)));
    }
}

// To the nearest, ties to even: the sum with 1.5 * 2^23 has it in its lowest bits.
inline void quantize(const float * v, float inverse, int n, int8_t * to) {
    for (int i = 0; i < n; ++i) {
        to[i] = int8_t(bits_as<int32_t>(v[i] * inverse + 12582912.0f) & 0xff);
    }
}

// The bits of the `n` channels beginning with `first`, a multiple of n; n is 16 or 32.
FFNSKIP_INLINE uint32_t bits_at(const uint32_t * kept, int64_t first, int n) {
    const uint32_t bits = kept[first / 32] >> first % 32;
    return n < 32 ? bits & ((1u << n) - 1) : bits;
}

// List::codes(code, kept, block, channel, to) lists the numbers and codes of the channels kept of a block of 16 or 32,
// and returns how many there are. It may write up to 32 bytes whatever their number.
template <typename List>
void prepare_codes(const ChannelLayout & layout, const float * v, const uint32_t * kept, const KeptChannels & to) {
    const ChannelFormat & format = *layout.format;
    const bool            halves = format.inputs == ChannelInputs::q8_32;
    const int             n = halves ? 32 : 256, block = format.block;  // inputs that share a scale; and blocks
    float                 masked[256];
    int8_t                code[256];
    int32_t               at = 0;
    to.begin[0]              = 0;
    for (int64_t first = 0, b = 0; first < layout.n_in; first += n) {
        for (int i = 0; i < n; i += 32) {
            mask_inputs(v + first + i, kept[(first + i) / 32], 32, masked + i);
        }
        const float most = largest(masked, n);
        // As ggml has it: of 256 inputs the step is the inverse of the inverse, of 32 on ARM the other way round.
        float       inverse = most != 0.0f ? 127.0f / most : 0.0f;
        const float exact   = halves ? most / 127.0f : most != 0.0f ? 1.0f / inverse : 0.0f;
#ifdef __aarch64__
        inverse = halves && exact != 0.0f ? 1.0f / exact : inverse;
#endif
        quantize(masked, inverse, n, code);
        for (int i = 0; i < n; i += block, ++b) {
            int32_t sum = 0;
            for (int j = 0; j < block; ++j) {
                sum += code[i + j];
            }
            to.scale[b]    = halves ? from_half(to_half(exact)) : exact;
            to.sum[b]      = halves ? from_half(to_half(exact * float(sum))) : exact * float(sum);
            to.code_sum[b] = sum;
            const int32_t end =
                at + List::codes(code + i, bits_at(kept, first + i, block), block, to.channel + at, to.code + at);
            for (at = end; at % 4 != 0; ++at) {
                to.channel[at] = to.channel[end - 1];
                to.code[at]    = 0;
            }
            to.begin[b + 1] = at;
        }
    }
}

inline void prepare_floats(const ChannelLayout & layout, const float * v, const uint32_t * kept,
                           const KeptChannels & to) {
    int32_t at  = 0;
    to.begin[0] = 0;
    for (int64_t first = 0, b = 0; first < layout.n_in; first += 32, ++b) {
        for (uint32_t bits = kept[b]; bits != 0; bits &= bits - 1, ++at) {
            const int   i     = lowest_bit(bits);
            const float value = v[first + i];
            to.channel[at]    = uint8_t(i);
            to.value[at]      = layout.format->inputs == ChannelInputs::f16    ? from_half(to_half(value))
                                : layout.format->inputs == ChannelInputs::bf16 ? from_bfloat(to_bfloat(value))
                                                                               : value;
        }
        for (const int32_t end = at; at % 4 != 0; ++at) {
            to.channel[at] = to.channel[end - 1];
            to.value[at]   = 0.0f;
        }
        to.begin[b + 1] = at;
    }
}

template <typename List>
void prepare_input(const ChannelLayout & layout, const float * v, const uint32_t * kept, const KeptChannels & to) {
    if (layout.format->scales == ChannelScales::none) {
        prepare_floats(layout, v, kept, to);
    } else {
        prepare_codes<List>(layout, v, kept, to);
    }
}

// The plain way.
struct PlainList {
    static int32_t codes(const int8_t * code, uint32_t kept, int, uint8_t * channel, int8_t * to) {
        int32_t n = 0;
        for (; kept != 0; kept &= kept - 1, ++n) {
            const int i = lowest_bit(kept);
            channel[n]  = uint8_t(i);
            to[n]       = code[i];
        }
        return n;
    }
};

// ---- multiply ----

// Where the kept channels of a block are, from the slice's first group of outputs on.
struct Rows {
    int             n;  // channels, a multiple of 4
    const uint8_t * low[k_max_channel_block];
    const uint8_t * high[k_max_channel_block];
    const uint8_t * scales[2];  // one array or two
    const uint8_t * span[2];
};

// And what they are multiplied by.
struct Block {
    const Rows &   rows;
    const int8_t * code;
    const float *  value;
    float          scale, sum;
    int32_t        zero;  // what the offset of the codes makes of the sum
};

// Four inputs' codes as one number.
FFNSKIP_INLINE int32_t four_codes(const int8_t * code) {
    int32_t bits;
    memcpy(&bits, code, sizeof(bits));
    return bits;
}

template <ChannelValues values_, ChannelScales scales_> struct Format {
    static constexpr ChannelValues values = values_;
    static constexpr ChannelScales scales = scales_;
    static constexpr int           low = low_bytes(values), high = high_bytes(values);
    static constexpr bool          has_second = scales == ChannelScales::d_m || scales == ChannelScales::k;
    static constexpr int           scale_size = scales == ChannelScales::none                                ? 0
                                                : scales == ChannelScales::d || scales == ChannelScales::d_m ? 2
                                                                                                             : 1;
};

// Asks for the lines that a group has of channels [first, last).
template <typename Isa, typename F>
FFNSKIP_INLINE void fetch_channels(const Rows & next, int64_t group, int first, int last) {
    for (int i = first; i < min_of(last, next.n); ++i) {
        for (int line = 0; line < F::low; line += 64) {
            Isa::fetch(next.low[i] + group * F::low + line);
        }
        if (F::high > 0 && group * F::high % 64 == 0) {
            Isa::fetch(next.high[i] + group * F::high);
        }
    }
}

template <typename Isa, typename F> FFNSKIP_INLINE void fetch_scales(const Rows & next, int64_t group) {
    for (int line = 0; next.n > 0 && line < k_channel_group * F::scale_size; line += 64) {
        const int64_t at = group * k_channel_group * F::scale_size + line;
        Isa::fetch(next.scales[0] + at);
        if (F::has_second) {
            Isa::fetch(next.scales[1] + at);
        }
    }
}

// The walk over tiles, blocks and groups. Isa::add<F>(block, next, group, y) adds a block's product to the 128 outputs
// of a group, and asks for the memory that the group will need of the next block; Isa::fetch(address) asks for a line.
template <typename Isa, typename F> class Multiplication {
public:
    Multiplication(const ChannelLayout & layout, const uint8_t * data, const KeptChannels * kept, int n_rows)
        : layout_(layout), data_(data), kept_(kept), n_rows_(n_rows) {}

    void run(int64_t first, int64_t last, float * y) {
        // Threads may have little stack: the outputs of all rows together are no more than a tile's.
        const int64_t most = k_max_channel_tile / k_channel_group / n_rows_;
        while (first < last) {
            tile_  = layout_.tile_of(first);
            first_ = first - tile_.first;
            n_     = min_of(min_of(last, tile_.first + tile_.width) - first, most);
            alignas(64) float sums[k_max_channel_tile];
            add_blocks(sums);
            const int64_t o = first * k_channel_group, n = min_of(n_ * k_channel_group, layout_.n_out - o);
            for (int r = 0; r < n_rows_; ++r) {
                memcpy(y + r * layout_.n_out + o, sums + r * n_ * k_channel_group, size_t(n) * sizeof(float));
            }
            first += n_;
        }
    }

private:
    // Where the walk of one input is.
    struct Walk {
        Rows    rows[2];  // of block b, and of its next one
        int     now;      // which of them is b's
        int64_t b;
    };

    void add_blocks(float * sums) {
        memset(sums, 0, size_t(n_rows_ * n_) * k_channel_group * sizeof(float));
        Walk walks[k_max_channel_rows];
        for (int r = 0; r < n_rows_; ++r) {
            walks[r].now = 0;
            walks[r].b   = find(kept_[r], -1, walks[r].rows[0]);
            for (int64_t group = 0; group < n_; ++group) {
                fetch_channels<Isa, F>(walks[r].rows[0], group, 0, k_max_channel_block);
                fetch_scales<Isa, F>(walks[r].rows[0], group);
            }
        }
        for (int64_t b = 0; b < layout_.n_blocks; ++b) {
            for (int r = 0; r < n_rows_; ++r) {
                if (walks[r].b == b) {
                    add_block(kept_[r], walks[r], sums + r * n_ * k_channel_group);
                }
            }
        }
    }

    void add_block(const KeptChannels & kept, Walk & walk, float * sums) const {
        const int64_t b     = walk.b;
        const Rows &  rows  = walk.rows[walk.now];
        Rows &        next  = walk.rows[1 - walk.now];
        const int32_t at    = kept.begin[b];
        const Block   block = { rows,          kept.code + at, kept.value + at,
                                kept.scale[b], kept.sum[b],    -layout_.format->offset * kept.code_sum[b] };
        walk.b              = find(kept, b, next);
        for (int64_t group = 0; group < n_; ++group) {
            Isa::template add<F>(block, next, group, sums + group * k_channel_group);
        }
        walk.now = 1 - walk.now;
    }

    // The next block after b of which a channel is kept, or n_blocks.
    int64_t find(const KeptChannels & kept, int64_t b, Rows & rows) const {
        do {
            if (++b == layout_.n_blocks) {
                rows.n = 0;
                return b;
            }
        } while (kept.begin[b] == kept.begin[b + 1]);
        const uint8_t * block   = data_ + tile_.block(b);
        const uint8_t * low     = block + first_ * F::low;
        const uint8_t * high    = block + tile_.high + first_ * F::high;
        const uint8_t * channel = kept.channel + kept.begin[b];
        rows.n                  = int(kept.begin[b + 1] - kept.begin[b]);
        for (int i = 0; i < rows.n; ++i) {
            rows.low[i]  = low + channel[i] * tile_.low_stride;
            rows.high[i] = high + channel[i] * tile_.high_stride;
        }
        rows.scales[0] = block + tile_.scales + first_ * k_channel_group * F::scale_size;
        rows.scales[1] = rows.scales[0] + tile_.width * k_channel_group * F::scale_size;
        rows.span[0]   = data_ + tile_.span(b) + first_ * k_channel_group * 2;
        rows.span[1]   = rows.span[0] + tile_.width * k_channel_group * 2;
        return b;
    }

    const ChannelLayout & layout_;
    const uint8_t *       data_;
    const KeptChannels *  kept_;  // [n_rows]
    int                   n_rows_;
    ChannelTile           tile_;
    int64_t               first_, n_;  // the slice's first group in the tile, and its number of groups
};

template <typename Isa, ChannelValues values, ChannelScales scales>
void multiply_format(const ChannelLayout & layout, const uint8_t * data, const KeptChannels * kept, int n_rows,
                     int64_t first, int64_t last, float * y) {
    Multiplication<Isa, Format<values, scales>>(layout, data, kept, n_rows).run(first, last, y);
}

template <typename Isa>
void multiply_channels(const ChannelLayout & layout, const uint8_t * data, const KeptChannels * kept, int n_rows,
                       int64_t first, int64_t last, float * y) {
    using V             = ChannelValues;
    using S             = ChannelScales;
    const S    scales   = layout.format->scales;
    const auto multiply = [&] {
        switch (layout.format->values) {
            case V::four_bits:
                return scales == S::d     ? multiply_format<Isa, V::four_bits, S::d>
                       : scales == S::d_m ? multiply_format<Isa, V::four_bits, S::d_m>
                                          : multiply_format<Isa, V::four_bits, S::k>;
            case V::five_bits:
                return scales == S::d     ? multiply_format<Isa, V::five_bits, S::d>
                       : scales == S::d_m ? multiply_format<Isa, V::five_bits, S::d_m>
                                          : multiply_format<Isa, V::five_bits, S::k>;
            case V::six_bits:
                return multiply_format<Isa, V::six_bits, S::k_signed>;
            case V::eight_bits:
                return multiply_format<Isa, V::eight_bits, S::d>;
            case V::f16:
                return multiply_format<Isa, V::f16, S::none>;
            case V::bf16:
                return multiply_format<Isa, V::bf16, S::none>;
            case V::f32:
                break;
        }
        return multiply_format<Isa, V::f32, S::none>;
    }();
    multiply(layout, data, kept, n_rows, first, last, y);
}

}  // namespace
}  // namespace ffnskip
