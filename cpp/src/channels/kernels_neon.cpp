// NEON with dot products (ARMv8.2). Sums of a quarter of a group at a time: of each vector of 16 outputs, four.
#include "kernels.h"

#include <arm_neon.h>

namespace ffnskip {
namespace {

struct Neon {
    static FFNSKIP_INLINE void fetch(const uint8_t * address) { __builtin_prefetch(address, 0, 2); }

    template <typename F>
    static FFNSKIP_INLINE void add(const Block & block, const Rows & next, int64_t group, float * y) {
        if constexpr (F::scales == ChannelScales::none) {
            add_floats<F>(block, next, group, y);
        } else {
            fetch_scales<Neon, F>(next, group);
            fetch_channels<Neon, F>(next, group, 0, k_max_channel_block);
            for (int quarter = 0; quarter < 4; ++quarter) {
                int32x4_t sums[8];  // vector k: of outputs 16 k + 4 quarter on
                add_codes<F>(block, group, quarter, sums);
                for (int k = 0; k < 8; ++k) {
                    const int64_t     o   = group * k_channel_group + k * 16 + quarter * 4;
                    float *           to  = y + k * 16 + quarter * 4;
                    const float32x4_t d   = vmulq_n_f32(scale<F>(block, o), block.scale);
                    float32x4_t       sum = vfmaq_f32(vld1q_f32(to), vcvtq_f32_s32(sums[k]), d);
                    if constexpr (F::has_second) {
                        sum = vfmaq_n_f32(sum, minimum<F>(block, o), block.sum);
                    }
                    vst1q_f32(to, sum);
                }
            }
        }
    }

private:
    static FFNSKIP_INLINE float32x4_t halves(const uint8_t * from) {
        return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(from)));
    }

    // Four bytes as floats.
    static FFNSKIP_INLINE uint8x8_t load4(const uint8_t * from) {
        uint32_t bits;
        memcpy(&bits, from, sizeof(bits));
        return vcreate_u8(bits);
    }

    static FFNSKIP_INLINE float32x4_t unsigned_bytes(const uint8_t * from) {
        return vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(load4(from)))));
    }

    static FFNSKIP_INLINE float32x4_t signed_bytes(const uint8_t * from) {
        return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u8(load4(from))))));
    }

    template <typename F> static FFNSKIP_INLINE float32x4_t scale(const Block & block, int64_t o) {
        if constexpr (F::scales == ChannelScales::k) {
            return vmulq_f32(halves(block.rows.span[0] + o * 2), unsigned_bytes(block.rows.scales[0] + o));
        } else if constexpr (F::scales == ChannelScales::k_signed) {
            return vmulq_f32(halves(block.rows.span[0] + o * 2), signed_bytes(block.rows.scales[0] + o));
        } else {
            return halves(block.rows.scales[0] + o * 2);
        }
    }

    template <typename F> static FFNSKIP_INLINE float32x4_t minimum(const Block & block, int64_t o) {
        if constexpr (F::scales == ChannelScales::k) {
            return vnegq_f32(vmulq_f32(halves(block.rows.span[1] + o * 2), unsigned_bytes(block.rows.scales[1] + o)));
        } else {
            return halves(block.rows.scales[1] + o * 2);
        }
    }

    // Dwords of four channels' bytes, from 16 bytes of each.
    static FFNSKIP_INLINE void interleave(const uint8_t * const * row, int64_t at, uint8x16_t to[4]) {
        const uint8x16_t r0 = vld1q_u8(row[0] + at), r1 = vld1q_u8(row[1] + at), r2 = vld1q_u8(row[2] + at),
                         r3 = vld1q_u8(row[3] + at);
        const uint16x8_t a = vreinterpretq_u16_u8(vzip1q_u8(r0, r1)), b = vreinterpretq_u16_u8(vzip2q_u8(r0, r1));
        const uint16x8_t c = vreinterpretq_u16_u8(vzip1q_u8(r2, r3)), d = vreinterpretq_u16_u8(vzip2q_u8(r2, r3));
        to[0] = vreinterpretq_u8_u16(vzip1q_u16(a, c));
        to[1] = vreinterpretq_u8_u16(vzip2q_u16(a, c));
        to[2] = vreinterpretq_u8_u16(vzip1q_u16(b, d));
        to[3] = vreinterpretq_u8_u16(vzip2q_u16(b, d));
    }

    // From 4 bytes of each.
    static FFNSKIP_INLINE uint8x16_t interleave4(const uint8_t * const * row, int64_t at) {
        const uint8x8_t  a = vzip1_u8(load4(row[0] + at), load4(row[1] + at)),
                         b = vzip1_u8(load4(row[2] + at), load4(row[3] + at));
        const uint16x4_t c = vreinterpret_u16_u8(a), d = vreinterpret_u16_u8(b);
        return vreinterpretq_u8_u16(vcombine_u16(vzip1_u16(c, d), vzip2_u16(c, d)));
    }

    // Field k of the high bits, where a code has its fifth bit and sixth.
    template <typename F> static FFNSKIP_INLINE uint8x16_t high_field(const uint8x16_t * high, int k) {
        const int        shift = F::values == ChannelValues::five_bits ? 4 - k : 4 - k % 4 * 2;
        const uint8x16_t from  = high[F::values == ChannelValues::five_bits ? 0 : k / 4];
        return vshlq_u8(from, vdupq_n_s8(int8_t(shift)));
    }

    template <typename F>
    static FFNSKIP_INLINE void add_codes(const Block & block, int64_t group, int quarter, int32x4_t sums[8]) {
        constexpr bool bytes = F::values == ChannelValues::eight_bits;
        // Codes are signed here: bytes less 128, which is their offset.
        for (int k = 0; k < 8; ++k) {
            sums[k] = vdupq_n_s32(bytes ? 0 : block.zero);
        }
        const auto dot = [](int32x4_t sum, uint8x16_t code, int8x16_t x) {
            return vdotq_s32(sum, vreinterpretq_s8_u8(code), x);
        };
        const uint8x16_t fifth = vdupq_n_u8(F::values == ChannelValues::five_bits ? 0x10 : 0x30);
        for (int i = 0; i < block.rows.n; i += 4) {
            const int8x16_t x = vreinterpretq_s8_s32(vdupq_n_s32(four_codes(block.code + i)));
            uint8x16_t      u[4];
            interleave(block.rows.low + i, group * F::low + quarter * 16, u);
            if constexpr (bytes) {
                uint8x16_t w[4];
                interleave(block.rows.low + i, group * F::low + quarter * 16 + 64, w);
                for (int k = 0; k < 4; ++k) {
                    sums[k]     = dot(sums[k], veorq_u8(u[k], vdupq_n_u8(0x80)), x);
                    sums[k + 4] = dot(sums[k + 4], veorq_u8(w[k], vdupq_n_u8(0x80)), x);
                }
            } else {
                uint8x16_t h[2];
                if constexpr (F::values == ChannelValues::five_bits) {
                    h[0] = interleave4(block.rows.high + i, group * F::high + quarter * 4);
                } else if constexpr (F::values == ChannelValues::six_bits) {
                    const int64_t at = group * F::high + quarter % 2 * 16 + quarter / 2 * 4;
                    h[0]             = interleave4(block.rows.high + i, at);
                    h[1]             = interleave4(block.rows.high + i, at + 8);
                }
                for (int k = 0; k < 8; ++k) {
                    uint8x16_t code = k < 4 ? vandq_u8(u[k], vdupq_n_u8(15)) : vshrq_n_u8(u[k - 4], 4);
                    if constexpr (F::high > 0) {
                        code = vorrq_u8(code, vandq_u8(high_field<F>(h, k), fifth));
                    }
                    sums[k] = dot(sums[k], code, x);
                }
            }
        }
    }

    template <typename F>
    static FFNSKIP_INLINE void add_floats(const Block & block, const Rows & next, int64_t group, float * y) {
        fetch_channels<Neon, F>(next, group, 0, k_max_channel_block);
        for (int half = 0; half < 2; ++half) {
            float32x4_t sums[16];
            for (int k = 0; k < 16; ++k) {
                sums[k] = vdupq_n_f32(0.0f);
            }
            for (int i = 0; i < block.rows.n; ++i) {
                const uint8_t * row = block.rows.low[i] + group * F::low + half * F::low / 2;
                for (int k = 0; k < 16; ++k) {
                    sums[k] = vfmaq_n_f32(sums[k], floats<F>(row, k), block.value[i]);
                }
            }
            for (int k = 0; k < 16; ++k) {
                float * to = y + half * 64 + k * 4;
                vst1q_f32(to, vaddq_f32(vld1q_f32(to), sums[k]));
            }
        }
    }

    template <typename F> static FFNSKIP_INLINE float32x4_t floats(const uint8_t * row, int k) {
        if constexpr (F::values == ChannelValues::f32) {
            return vreinterpretq_f32_u8(vld1q_u8(row + k * 16));
        } else if constexpr (F::values == ChannelValues::f16) {
            return halves(row + k * 8);
        } else {
            return vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(vld1_u8(row + k * 8)), 16));
        }
    }
};

int64_t select(const float * v, const float * norms, float threshold, int64_t n_in, uint32_t * kept) {
    static const uint32_t k_bits[4] = { 1, 2, 4, 8 };
    const uint32x4_t      bit       = vld1q_u32(k_bits);
    const float32x4_t     least     = vdupq_n_f32(threshold);
    int64_t               n = 0, j = 0;
    for (; j + 32 <= n_in; j += 32) {
        uint32_t bits = 0;
        for (int i = 0; i < 32; i += 4) {
            const float32x4_t reach = vmulq_f32(vabsq_f32(vld1q_f32(v + j + i)), vld1q_f32(norms + j + i));
            bits |= vaddvq_u32(vbicq_u32(bit, vcltq_f32(reach, least))) << i;
        }
        kept[j / 32] = bits;
        n += __builtin_popcount(bits);
    }
    return n + select_rest(v, norms, threshold, j, n_in, kept);
}

}  // namespace

const ChannelKernels k_neon_kernels = { "NEON", 1, select, prepare_input<PlainList>, multiply_channels<Neon> };

}  // namespace ffnskip
