// AVX-512 with VNNI: F, BW, DQ, VL, VNNI.
#include "kernels.h"

#include <immintrin.h>

namespace ffnskip {
namespace {

struct Avx512 {
    // Into L2: a whole block comes while the one before is computed, too much for L1.
    static FFNSKIP_INLINE void fetch(const uint8_t * address) {
        _mm_prefetch(reinterpret_cast<const char *>(address), _MM_HINT_T1);
    }

    template <typename F>
    static FFNSKIP_INLINE void add(const Block & block, const Rows & next, int64_t group, float * y) {
        if constexpr (F::scales == ChannelScales::none) {
            add_floats<F>(block, next, group, y);
        } else {
            __m512i sums[8];  // vector k: of outputs 16 k to 16 k + 15
            add_codes<F>(block, next, group, sums);
            fetch_scales<Avx512, F>(next, group);
            for (int k = 0; k < 8; ++k) {
                const int64_t o   = group * k_channel_group + k * 16;
                const __m512  d   = _mm512_mul_ps(scale<F>(block, o), _mm512_set1_ps(block.scale));
                __m512        sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[k]), d, _mm512_load_ps(y + k * 16));
                if constexpr (F::has_second) {
                    sum = _mm512_fmadd_ps(minimum<F>(block, o), _mm512_set1_ps(block.sum), sum);
                }
                _mm512_store_ps(y + k * 16, sum);
            }
        }
    }

private:
    static FFNSKIP_INLINE __m512 halves(const uint8_t * from) {
        return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(from)));
    }

    static FFNSKIP_INLINE __m128i load16(const uint8_t * from) {
        return _mm_loadu_si128(reinterpret_cast<const __m128i *>(from));
    }

    template <typename F> static FFNSKIP_INLINE __m512 scale(const Block & block, int64_t o) {
        if constexpr (F::scales == ChannelScales::k) {
            return _mm512_mul_ps(halves(block.rows.span[0] + o * 2),
                                 _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(load16(block.rows.scales[0] + o))));
        } else if constexpr (F::scales == ChannelScales::k_signed) {
            return _mm512_mul_ps(halves(block.rows.span[0] + o * 2),
                                 _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load16(block.rows.scales[0] + o))));
        } else {
            return halves(block.rows.scales[0] + o * 2);
        }
    }

    template <typename F> static FFNSKIP_INLINE __m512 minimum(const Block & block, int64_t o) {
        if constexpr (F::scales == ChannelScales::k) {
            const __m512 t = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(load16(block.rows.scales[1] + o)));
            return _mm512_fnmadd_ps(halves(block.rows.span[1] + o * 2), t, _mm512_setzero_ps());
        } else {
            return halves(block.rows.scales[1] + o * 2);
        }
    }

    // Dwords of four channels' bytes, from 64 bytes of each.
    static FFNSKIP_INLINE void interleave(const uint8_t * const * row, int64_t at, __m512i to[4]) {
        const __m512i r0 = _mm512_loadu_si512(row[0] + at), r1 = _mm512_loadu_si512(row[1] + at);
        const __m512i r2 = _mm512_loadu_si512(row[2] + at), r3 = _mm512_loadu_si512(row[3] + at);
        const __m512i a = _mm512_unpacklo_epi8(r0, r1), b = _mm512_unpackhi_epi8(r0, r1);
        const __m512i c = _mm512_unpacklo_epi8(r2, r3), d = _mm512_unpackhi_epi8(r2, r3);
        to[0] = _mm512_unpacklo_epi16(a, c);
        to[1] = _mm512_unpackhi_epi16(a, c);
        to[2] = _mm512_unpacklo_epi16(b, d);
        to[3] = _mm512_unpackhi_epi16(b, d);
    }

    // From 16 bytes of each, that is 16 dwords.
    static FFNSKIP_INLINE __m512i interleave16(const uint8_t * const * row, int64_t at) {
        const __m128i r0 = load16(row[0] + at), r1 = load16(row[1] + at), r2 = load16(row[2] + at),
                      r3 = load16(row[3] + at);
        const __m128i a = _mm_unpacklo_epi8(r0, r1), b = _mm_unpackhi_epi8(r0, r1);
        const __m128i c = _mm_unpacklo_epi8(r2, r3), d = _mm_unpackhi_epi8(r2, r3);
        const __m256i low  = _mm256_set_m128i(_mm_unpackhi_epi16(a, c), _mm_unpacklo_epi16(a, c));
        const __m256i high = _mm256_set_m128i(_mm_unpackhi_epi16(b, d), _mm_unpacklo_epi16(b, d));
        return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
    }

    // From 32 bytes of each: dwords 0 to 3 and 16 to 19, then 4 to 7 and 20 to 23; and the rest.
    static FFNSKIP_INLINE void interleave32(const uint8_t * const * row, int64_t at, __m512i to[2]) {
        const auto    load = [&](int i) { return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(row[i] + at)); };
        const __m256i r0 = load(0), r1 = load(1), r2 = load(2), r3 = load(3);
        const __m256i a = _mm256_unpacklo_epi8(r0, r1), b = _mm256_unpackhi_epi8(r0, r1);
        const __m256i c = _mm256_unpacklo_epi8(r2, r3), d = _mm256_unpackhi_epi8(r2, r3);
        to[0] = _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_unpacklo_epi16(a, c)), _mm256_unpackhi_epi16(a, c), 1);
        to[1] = _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_unpacklo_epi16(b, d)), _mm256_unpackhi_epi16(b, d), 1);
    }

    // Field `i` of the high bits, where a code has its fifth bit and sixth.
    template <typename F> static FFNSKIP_INLINE __m512i high_field(const __m512i * high, int k) {
        const int     shift = F::values == ChannelValues::five_bits ? 4 - k : 4 - k % 4 * 2;
        const __m512i from  = high[F::values == ChannelValues::five_bits ? 0 : k / 4];
        return shift > 0 ? _mm512_slli_epi16(from, unsigned(shift)) : _mm512_srli_epi16(from, unsigned(-shift));
    }

    template <typename F>
    static FFNSKIP_INLINE void add_codes(const Block & block, const Rows & next, int64_t group, __m512i sums[8]) {
        constexpr bool four = F::values == ChannelValues::four_bits;
        // Two codes of four bits in a byte: the sums of whole bytes, and of the higher codes where they are, 16-fold.
        for (int k = 0; k < 8; ++k) {
            sums[k] = _mm512_set1_epi32(four ? (k < 4 ? 17 : 16) * block.zero : block.zero);
        }
        const __m512i low = _mm512_set1_epi8(15), high = _mm512_set1_epi8(char(0xf0));
        const __m512i fifth = _mm512_set1_epi8(F::values == ChannelValues::five_bits ? 0x10 : 0x30);
        for (int i = 0; i < block.rows.n; i += 4) {
            const __m512i x = _mm512_set1_epi32(four_codes(block.code + i));
            __m512i       u[4];
            interleave(block.rows.low + i, group * F::low, u);
            fetch_channels<Avx512, F>(next, group, i, i + 4);
            if constexpr (four) {
                for (int k = 0; k < 4; ++k) {
                    sums[k]     = _mm512_dpbusd_epi32(sums[k], u[k], x);
                    sums[k + 4] = _mm512_dpbusd_epi32(sums[k + 4], _mm512_and_si512(u[k], high), x);
                }
            } else if constexpr (F::values == ChannelValues::eight_bits) {
                __m512i w[4];
                interleave(block.rows.low + i, group * F::low + 64, w);
                for (int k = 0; k < 4; ++k) {
                    sums[k]     = _mm512_dpbusd_epi32(sums[k], u[k], x);
                    sums[k + 4] = _mm512_dpbusd_epi32(sums[k + 4], w[k], x);
                }
            } else {
                __m512i h[2];
                if constexpr (F::values == ChannelValues::five_bits) {
                    h[0] = interleave16(block.rows.high + i, group * F::high);
                } else {
                    interleave32(block.rows.high + i, group * F::high, h);
                }
                for (int k = 0; k < 8; ++k) {
                    const __m512i nibble = _mm512_and_si512(k < 4 ? u[k] : _mm512_srli_epi16(u[k - 4], 4), low);
                    // (field & fifth) | nibble
                    sums[k] = _mm512_dpbusd_epi32(
                        sums[k], _mm512_ternarylogic_epi32(high_field<F>(h, k), fifth, nibble, 0xea), x);
                }
            }
        }
        fetch_channels<Avx512, F>(next, group, block.rows.n, k_max_channel_block);
        if constexpr (four) {
            for (int k = 0; k < 4; ++k) {
                sums[k]     = _mm512_sub_epi32(sums[k], sums[k + 4]);
                sums[k + 4] = _mm512_srai_epi32(sums[k + 4], 4);
            }
        }
    }

    template <typename F>
    static FFNSKIP_INLINE void add_floats(const Block & block, const Rows & next, int64_t group, float * y) {
        __m512 sums[8];
        for (int k = 0; k < 8; ++k) {
            sums[k] = _mm512_setzero_ps();
        }
        for (int i = 0; i < block.rows.n; ++i) {
            const __m512    x   = _mm512_set1_ps(block.value[i]);
            const uint8_t * row = block.rows.low[i] + group * F::low;
            fetch_channels<Avx512, F>(next, group, i, i + 1);
            for (int k = 0; k < 8; ++k) {
                sums[k] = _mm512_fmadd_ps(x, floats<F>(row, k), sums[k]);
            }
        }
        fetch_channels<Avx512, F>(next, group, block.rows.n, k_max_channel_block);
        for (int k = 0; k < 8; ++k) {
            _mm512_store_ps(y + k * 16, _mm512_add_ps(_mm512_load_ps(y + k * 16), sums[k]));
        }
    }

    template <typename F> static FFNSKIP_INLINE __m512 floats(const uint8_t * row, int k) {
        if constexpr (F::values == ChannelValues::f32) {
            return _mm512_loadu_ps(row + k * 64);
        } else if constexpr (F::values == ChannelValues::f16) {
            return halves(row + k * 32);
        } else {
            const __m256i values = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(row + k * 32));
            return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(values), 16));
        }
    }
};

struct Avx512List {
    static int32_t codes(const int8_t * code, uint32_t kept, int block, uint8_t * channel, int8_t * to) {
        const __m512i numbers = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
        int32_t       n       = 0;
        for (int i = 0; i < block; i += 16) {
            const __mmask16 mask = __mmask16(kept >> i);
            const __m512i   x    = _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(code + i)));
            const __m512i   j    = _mm512_add_epi32(numbers, _mm512_set1_epi32(i));
            _mm_storeu_si128(reinterpret_cast<__m128i *>(to + n),
                             _mm512_cvtepi32_epi8(_mm512_maskz_compress_epi32(mask, x)));
            _mm_storeu_si128(reinterpret_cast<__m128i *>(channel + n),
                             _mm512_cvtepi32_epi8(_mm512_maskz_compress_epi32(mask, j)));
            n += __builtin_popcount(mask);
        }
        return n;
    }
};

int64_t select(const float * v, const float * norms, float threshold, int64_t n_in, uint32_t * kept) {
    int64_t    n    = 0;
    const auto bits = [&](int64_t j, __mmask16 there) {
        const __m512 reach =
            _mm512_mul_ps(_mm512_abs_ps(_mm512_maskz_loadu_ps(there, v + j)), _mm512_maskz_loadu_ps(there, norms + j));
        return uint32_t(_mm512_mask_cmp_ps_mask(there, reach, _mm512_set1_ps(threshold), _CMP_NLT_UQ));
    };
    const auto there = [&](int64_t j) {
        return j >= n_in ? __mmask16(0) : n_in - j >= 16 ? __mmask16(0xffff) : __mmask16((1u << (n_in - j)) - 1);
    };
    for (int64_t j = 0; j < n_in; j += 32) {
        kept[j / 32] = bits(j, there(j)) | bits(j + 16, there(j + 16)) << 16;
        n += __builtin_popcount(kept[j / 32]);
    }
    return n;
}

}  // namespace

const ChannelKernels k_avx512_kernels = { "AVX-512", 8, select, prepare_input<Avx512List>, multiply_channels<Avx512> };

}  // namespace ffnskip
