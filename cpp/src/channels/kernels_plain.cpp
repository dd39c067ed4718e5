// Plain C++, for any CPU; compilers make vectors of much of it.
#include "kernels.h"

namespace ffnskip {
namespace {

struct Plain {
    static FFNSKIP_INLINE void fetch(const uint8_t *) {}

    template <typename F> static void add(const Block & block, const NextBlock &, int64_t group, float * y) {
        if constexpr (F::scales == ChannelScales::none) {
            for (int i = 0; i < block.n; ++i) {
                const uint8_t * row = block.low[i] + group * F::low;
                for (int o = 0; o < k_channel_group; ++o) {
                    y[o] += block.value[i] * float_at<F>(row, o);
                }
            }
        } else {
            int32_t sums[k_channel_group];
            for (int32_t & sum : sums) {
                sum = block.zero;
            }
            for (int i = 0; i < block.n; ++i) {
                add_codes<F>(block.low[i] + group * F::low, block.high[i] + group * F::high, block.code[i], sums);
            }
            for (int o = 0; o < k_channel_group; ++o) {
                add_scaled<F>(block, group * k_channel_group + o, sums[o], y[o]);
            }
        }
    }

private:
    template <typename T> static FFNSKIP_INLINE T at(const uint8_t * from, int64_t i) {
        T value;
        __builtin_memcpy(&value, from + i * int64_t(sizeof(T)), sizeof(T));
        return value;
    }

    template <typename F> static FFNSKIP_INLINE float float_at(const uint8_t * row, int o) {
        return F::values == ChannelValues::f32   ? at<float>(row, o)
               : F::values == ChannelValues::f16 ? from_half(at<uint16_t>(row, o))
                                                 : from_bfloat(at<uint16_t>(row, o));
    }

    template <typename F> static FFNSKIP_INLINE void add_codes(const uint8_t * low, const uint8_t * high, int32_t x, int32_t * sums) {
        constexpr bool bytes = F::values == ChannelValues::eight_bits;
        for (int o = 0; o < 64; ++o) {
            const int     byte   = code_byte(o);
            const int32_t first  = bytes ? low[byte] : low[byte] & 15;
            const int32_t second = bytes ? low[byte + 64] : low[byte] >> 4;
            sums[o] += x * first;
            sums[o + 64] += x * second;
        }
        if (F::high > 0) {
            constexpr int mask = F::values == ChannelValues::five_bits ? 1 : 3;
            for (int o = 0; o < k_channel_group; ++o) {
                const HighBits bits = high_bits(F::values, o);
                sums[o] += x * 16 * (high[bits.byte] >> bits.shift & mask);
            }
        }
    }

    template <typename F> static FFNSKIP_INLINE void add_scaled(const Block & block, int64_t o, int32_t sum, float & y) {
        switch (F::scales) {
            case ChannelScales::d_m: y += from_half(at<uint16_t>(block.scales[1], o)) * block.sum; [[fallthrough]];
            case ChannelScales::d: y += from_half(at<uint16_t>(block.scales[0], o)) * block.scale * float(sum); break;
            case ChannelScales::k: y -= from_half(at<uint16_t>(block.span[1], o)) * float(block.scales[1][o]) * block.sum;
                y += from_half(at<uint16_t>(block.span[0], o)) * float(block.scales[0][o]) * block.scale * float(sum); break;
            case ChannelScales::k_signed:
                y += from_half(at<uint16_t>(block.span[0], o)) * float(int8_t(block.scales[0][o])) * block.scale * float(sum); break;
            case ChannelScales::none: break;
        }
    }
};

int64_t select(const float * v, const float * norms, float threshold, int64_t n_in, uint32_t * kept) {
    return select_rest(v, norms, threshold, 0, n_in, kept);
}

}  // namespace

const ChannelKernels k_plain_kernels = { "plain", select, prepare_input<PlainList>, multiply_channels<Plain> };

}  // namespace ffnskip
