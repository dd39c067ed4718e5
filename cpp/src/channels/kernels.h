// What the kernels of all instruction sets have in common: the rounding of the input, and the walk over a matrix. Each file
// of kernels includes this for itself, compiled for its own instruction set: all is in the unnamed namespace, and nothing
// inline of the standard library is used, for the linker would take one file's copy for all, on a CPU that can't run it.
#pragma once

#include "channel_kernels.h"
#include "half.h"

#ifdef _MSC_VER
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

// ---- select ----

// The channels from `j`, a multiple of 32, on, one by one.
inline int64_t select_rest(const float * v, const float * norms, float threshold, int64_t j, int64_t n_in, uint32_t * kept) {
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

// The largest |v|; bits of floats order like their absolute values, and not-a-number comes last. (As floats, compilers would not
// take several at once.)
inline float largest(const float * v, int n) {
    int32_t bits = 0;
    for (int i = 0; i < n; ++i) {
        const int32_t other = bits_as<int32_t>(v[i]) & 0x7fffffff;
        bits = other > bits ? other : bits;
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

// List::codes(code, kept, channel, out) writes the numbers and codes of the channels kept of a block of up to 32, in any number of bytes
// up to 32, and returns how many there are.
template <typename List> void prepare_codes(const ChannelLayout & layout, const float * v, const uint32_t * kept, const KeptChannels & to) {
    const ChannelFormat & format = *layout.format;
    const bool            halves = format.inputs == ChannelInputs::q8_32;
    const int             n      = halves ? 32 : 256, block = format.block;  // inputs that share a scale; and blocks
    float   masked[256];
    int8_t  code[256];
    int32_t at = 0;
    to.begin[0] = 0;
    for (int64_t first = 0, b = 0; first < layout.n_in; first += n) {
        for (int i = 0; i < n; i += 32) {
            mask_inputs(v + first + i, kept[(first + i) / 32], 32, masked + i);
        }
        const float most    = largest(masked, n);
        // ggml's steps of 256 inputs are the inverse of the inverse; and so are its inverses of 32 inputs on ARM of the steps.
        float inverse = most != 0.0f ? 127.0f / most : 0.0f;
        const float exact = halves ? most / 127.0f : most != 0.0f ? 1.0f / inverse : 0.0f;
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
            const int32_t end = at + List::codes(code + i, bits_at(kept, first + i, block), block, to.channel + at, to.code + at);
            for (at = end; at % 4 != 0; ++at) {
                to.channel[at] = to.channel[end - 1];
                to.code[at]    = 0;
            }
            to.begin[b + 1] = at;
        }
    }
}

inline void prepare_floats(const ChannelLayout & layout, const float * v, const uint32_t * kept, const KeptChannels & to) {
    int32_t at = 0;
    to.begin[0] = 0;
    for (int64_t first = 0, b = 0; first < layout.n_in; first += 32, ++b) {
        for (uint32_t bits = kept[b]; bits != 0; bits &= bits - 1, ++at) {
            const int   i     = __builtin_ctz(bits);
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

template <typename List> void prepare_input(const ChannelLayout & layout, const float * v, const uint32_t * kept, const KeptChannels & to) {
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
            const int i = __builtin_ctz(kept);
            channel[n]  = uint8_t(i);
            to[n]       = code[i];
        }
        return n;
    }
};

// ---- multiply ----

// One block's kept channels, for the tile's groups of outputs from `first` of the slice on.
struct Block {
    int             n;                               // channels kept, a multiple of 4
    const uint8_t * low[k_max_channel_block];        // their rows
    const uint8_t * high[k_max_channel_block];
    const int8_t *  code;                            // what they are multiplied by
    const float *   value;
    float           scale, sum;
    int32_t         zero;                            // what the codes' offset makes of the sum
    const uint8_t * scales[2];                       // the first and the second array of the block's scales
    const uint8_t * span[2];                         // and of the span's
};

// And what is wanted next of the memory.
struct NextBlock {
    int             n;
    const uint8_t * low[k_max_channel_block];
    const uint8_t * high[k_max_channel_block];
    const uint8_t * scales[2];
};

// Four inputs' codes as one number.
FFNSKIP_INLINE int32_t four_codes(const int8_t * code) {
    int32_t bits;
    __builtin_memcpy(&bits, code, sizeof(bits));
    return bits;
}

template <ChannelValues values_, ChannelScales scales_> struct Format {
    static constexpr ChannelValues values = values_;
    static constexpr ChannelScales scales = scales_;
    static constexpr int block = values == ChannelValues::six_bits ? 16 : 32;
    static constexpr int low   = low_bytes(values), high = high_bytes(values);
    static constexpr bool has_second = scales == ChannelScales::d_m || scales == ChannelScales::k;
    static constexpr int scale_size = scales == ChannelScales::none ? 0 : scales == ChannelScales::d || scales == ChannelScales::d_m ? 2 : 1;
};

// The walk over tiles, blocks and groups. Isa::template add<Format>(block, group, y) adds a block's product to the 128
// outputs of a group; Isa::fetch(address) asks for a line of memory.
template <typename Isa, typename F> class Multiplication {
public:
    static void run(const ChannelLayout & layout, const uint8_t * data, const KeptChannels & kept, int64_t first, int64_t last, float * y) {
        while (first < last) {
            const int64_t tile = layout.tile_of(first), begin = layout.tile_begin(tile), end = layout.tile_begin(tile + 1);
            const Slice   slice{ layout, data + layout.tile_offset(tile), end - begin, first - begin, min_of(last, end) - first };
            alignas(64) float sums[k_max_channel_tile];
            add_blocks(slice, kept, sums);
            const int64_t o = first * k_channel_group, n = min_of(slice.n * k_channel_group, layout.n_out - o);
            __builtin_memcpy(y + o, sums, size_t(n) * sizeof(float));
            first += slice.n;
        }
    }

private:
    // `n` groups of a tile of `width`, which lies at `data`.
    struct Slice {
        const ChannelLayout & layout;
        const uint8_t *       data;
        int64_t               width, first, n;
    };

    static void add_blocks(const Slice & slice, const KeptChannels & kept, float * sums) {
        __builtin_memset(sums, 0, size_t(slice.n) * k_channel_group * sizeof(float));
        const int64_t n_blocks = slice.layout.n_blocks;
        Block         block;
        NextBlock     next;
        for (int64_t b = 0; b < n_blocks; ++b) {
            if (kept.begin[b] == kept.begin[b + 1]) {
                continue;
            }
            block.n = point(slice, kept, b, block.low, block.high, block.scales);
            if (F::scales == ChannelScales::none) {
                block.value = kept.value + kept.begin[b];
            } else {
                block.code  = kept.code + kept.begin[b];
                block.scale = kept.scale[b];
                block.sum   = kept.sum[b];
                block.zero  = -slice.layout.format->offset * kept.code_sum[b];
                if (span_bytes(F::scales) > 0) {
                    block.span[0] = slice.data + slice.layout.span_offset(slice.width, b / slice.layout.blocks_per_span()) + slice.first * k_channel_group * 2;
                    block.span[1] = block.span[0] + slice.width * k_channel_group * 2;
                }
            }
            next.n = b + 1 < n_blocks ? point(slice, kept, b + 1, next.low, next.high, next.scales) : 0;
            for (int64_t group = 0; group < slice.n; ++group) {
                Isa::template add<F>(block, next, group, sums + group * k_channel_group);
            }
        }
    }

    static int point(const Slice & slice, const KeptChannels & kept, int64_t b, const uint8_t ** low, const uint8_t ** high, const uint8_t ** scales) {
        const uint8_t * begin = slice.data + slice.layout.block_offset(slice.width, b);
        const int       n     = int(kept.begin[b + 1] - kept.begin[b]);
        const uint8_t * high_begin = begin + slice.layout.high_offset(slice.width);
        const int64_t   low_stride = slice.layout.low_stride(slice.width), high_stride = slice.layout.high_stride(slice.width);
        for (int i = 0; i < n; ++i) {
            const int64_t channel = kept.channel[kept.begin[b] + i];
            low[i]  = begin + channel * low_stride + slice.first * F::low;
            high[i] = high_begin + channel * high_stride + slice.first * F::high;
        }
        scales[0] = begin + slice.layout.scales_offset(slice.width) + slice.first * k_channel_group * F::scale_size;
        scales[1] = scales[0] + slice.width * k_channel_group * F::scale_size;
        return n;
    }
};

// Asks for the lines that group `group` of the next block has of its channels [first, last).
template <typename Isa, typename F> FFNSKIP_INLINE void fetch_channels(const NextBlock & next, int64_t group, int first, int last) {
    for (int i = first; i < last; ++i) {
        for (int line = 0; line < F::low; line += 64) {
            Isa::fetch(next.low[i] + group * F::low + line);
        }
        if (F::high > 0 && group * F::high % 64 == 0) {
            Isa::fetch(next.high[i] + group * F::high);
        }
    }
}

template <typename Isa, typename F> FFNSKIP_INLINE void fetch_scales(const NextBlock & next, int64_t group) {
    if (next.n > 0) {
        for (int line = 0; line < k_channel_group * F::scale_size; line += 64) {
            Isa::fetch(next.scales[0] + group * k_channel_group * F::scale_size + line);
            if (F::has_second) {
                Isa::fetch(next.scales[1] + group * k_channel_group * F::scale_size + line);
            }
        }
    }
}

template <typename Isa>
void multiply_channels(const ChannelLayout & layout, const uint8_t * data, const KeptChannels & kept, int64_t first, int64_t last, float * y) {
    using V = ChannelValues;
    using S = ChannelScales;
    const S scales = layout.format->scales;
    switch (layout.format->values) {
        case V::four_bits:
            return (scales == S::d     ? Multiplication<Isa, Format<V::four_bits, S::d>>::run
                    : scales == S::d_m ? Multiplication<Isa, Format<V::four_bits, S::d_m>>::run
                                       : Multiplication<Isa, Format<V::four_bits, S::k>>::run)(layout, data, kept, first, last, y);
        case V::five_bits:
            return (scales == S::d     ? Multiplication<Isa, Format<V::five_bits, S::d>>::run
                    : scales == S::d_m ? Multiplication<Isa, Format<V::five_bits, S::d_m>>::run
                                       : Multiplication<Isa, Format<V::five_bits, S::k>>::run)(layout, data, kept, first, last, y);
        case V::six_bits: return Multiplication<Isa, Format<V::six_bits, S::k_signed>>::run(layout, data, kept, first, last, y);
        case V::eight_bits: return Multiplication<Isa, Format<V::eight_bits, S::d>>::run(layout, data, kept, first, last, y);
        case V::f16: return Multiplication<Isa, Format<V::f16, S::none>>::run(layout, data, kept, first, last, y);
        case V::bf16: return Multiplication<Isa, Format<V::bf16, S::none>>::run(layout, data, kept, first, last, y);
        case V::f32: return Multiplication<Isa, Format<V::f32, S::none>>::run(layout, data, kept, first, last, y);
    }
}

}  // namespace
}  // namespace ffnskip
