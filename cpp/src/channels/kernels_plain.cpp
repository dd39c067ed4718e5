// Plain C++, for any CPU; compilers make vectors of much of it.
#include "kernels.h"

namespace ffnskip {
namespace {

struct Plain {
    static FFNSKIP_INLINE void fetch(const uint8_t *) {}

    template <typename F> static void add(const Block & block, const Rows &, int64_t group, float * y) {
        if constexpr (F::scales == ChannelScales::none) {
            float sums[k_channel_group] = {};
            for (int i = 0; i < block.rows.n; ++i) {
                const uint8_t * row = block.rows.low[i] + group * F::low;
                for (int o = 0; o < k_channel_group; ++o) {
                    sums[o] += block.value[i] * float_at<F>(row, o);
                }
            }
            for (int o = 0; o < k_channel_group; ++o) {
                y[o] += sums[o];
            }
        } else {
            // In the order of the bytes, which compilers make vectors of.
            int32_t low[k_channel_group] = {}, high[k_channel_group] = {};
            for (int i = 0; i < block.rows.n; ++i) {
                add_low<F>(block.rows.low[i] + group * F::low, block.code[i], low);
                if constexpr (F::high > 0) {
                    add_high<F>(block.rows.high[i] + group * F::high, block.code[i], high);
                }
            }
            for (int o = 0; o < k_channel_group; ++o) {
                int32_t sum = block.zero + low[o / 64 * 64 + code_byte(o % 64)];
                if constexpr (F::high > 0) {
                    const CodeBits bits = high_bits(F::values, o);
                    sum += 16 * high[F::high * (bits.shift * k_channel_group / (F::high * 8)) + bits.byte];
                }
                add_scaled<F>(block, group * k_channel_group + o, sum, y[o]);
            }
        }
    }

private:
    template <typename T> static FFNSKIP_INLINE T at(const uint8_t * from, int64_t i) {
        T value;
        memcpy(&value, from + i * int64_t(sizeof(T)), sizeof(T));
        return value;
    }

    template <typename F> static FFNSKIP_INLINE float float_at(const uint8_t * row, int o) {
        return F::values == ChannelValues::f32   ? at<float>(row, o)
               : F::values == ChannelValues::f16 ? from_half(at<uint16_t>(row, o))
                                                 : from_bfloat(at<uint16_t>(row, o));
    }

    // sums[64 * h + b]: of nibble h of byte b, or of byte b of line h.
    template <typename F> static void add_low(const uint8_t * codes, int x, int32_t * sums) {
        for (int b = 0; b < 64; ++b) {
            sums[b] += int16_t(x) * int16_t(F::values == ChannelValues::eight_bits ? codes[b] : codes[b] & 15);
        }
        for (int b = 0; b < 64; ++b) {
            sums[b + 64] +=
                int16_t(x) * int16_t(F::values == ChannelValues::eight_bits ? codes[b + 64] : codes[b] >> 4);
        }
    }

    // sums[F::high * f + b]: of field f of byte b.
    template <typename F> static void add_high(const uint8_t * codes, int x, int32_t * sums) {
        constexpr int bits = F::high * 8 / k_channel_group;
        for (int f = 0; f < 8 / bits; ++f) {
            for (int b = 0; b < F::high; ++b) {
                sums[F::high * f + b] += int16_t(x) * int16_t(codes[b] >> f * bits & ((1 << bits) - 1));
            }
        }
    }

    template <typename F>
    static FFNSKIP_INLINE void add_scaled(const Block & block, int64_t o, int32_t sum, float & y) {
        switch (F::scales) {
            case ChannelScales::d_m:
                y += from_half(at<uint16_t>(block.rows.scales[1], o)) * block.sum;
                [[fallthrough]];
            case ChannelScales::d:
                y += from_half(at<uint16_t>(block.rows.scales[0], o)) * block.scale * float(sum);
                break;
            case ChannelScales::k:
                y -= from_half(at<uint16_t>(block.rows.span[1], o)) * float(block.rows.scales[1][o]) * block.sum;
                y += from_half(at<uint16_t>(block.rows.span[0], o)) * float(block.rows.scales[0][o]) * block.scale *
                     float(sum);
                break;
            case ChannelScales::k_signed:
                y += from_half(at<uint16_t>(block.rows.span[0], o)) * float(int8_t(block.rows.scales[0][o])) *
                     block.scale * float(sum);
                break;
            case ChannelScales::none:
                break;
        }
    }
};

int64_t select(const float * v, const float * norms, float threshold, int64_t n_in, uint32_t * kept) {
    return select_rest(v, norms, threshold, 0, n_in, kept);
}

}  // namespace

const ChannelKernels k_plain_kernels = { "plain", 1, select, prepare_input<PlainList>, multiply_channels<Plain> };

}  // namespace ffnskip
