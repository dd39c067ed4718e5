// AVX2 with FMA and F16C. Sixteen registers hold the sums of half a group at a time: of each vector of 16 outputs, the
// first or the second eight.
#include "kernels.h"

#include <immintrin.h>

namespace ffnskip {
namespace {

struct Avx2 {
    static FFNSKIP_INLINE void fetch(const uint8_t * address) {
        _mm_prefetch(reinterpret_cast<const char *>(address), _MM_HINT_T1);
    }

    template <typename F>
    static FFNSKIP_INLINE void add(const Block & block, const Rows & next, int64_t group, float * y) {
        if constexpr (F::scales == ChannelScales::none) {
            add_floats<F>(block, next, group, y);
        } else {
            fetch_scales<Avx2, F>(next, group);
            for (int half = 0; half < 2; ++half) {
                __m256i sums[8];  // vector k: of outputs 16 k + 8 half on
                add_codes<F>(block, next, group, half, sums);
                for (int k = 0; k < 8; ++k) {
                    const int64_t o   = group * k_channel_group + k * 16 + half * 8;
                    float *       to  = y + k * 16 + half * 8;
                    const __m256  d   = _mm256_mul_ps(scale<F>(block, o), _mm256_set1_ps(block.scale));
                    __m256        sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums[k]), d, _mm256_load_ps(to));
                    if constexpr (F::has_second) {
                        sum = _mm256_fmadd_ps(minimum<F>(block, o), _mm256_set1_ps(block.sum), sum);
                    }
                    _mm256_store_ps(to, sum);
                }
            }
        }
    }

private:
    static FFNSKIP_INLINE __m128i load16(const uint8_t * from) {
        return _mm_loadu_si128(reinterpret_cast<const __m128i *>(from));
    }

    static FFNSKIP_INLINE __m128i load8(const uint8_t * from) {
        return _mm_loadl_epi64(reinterpret_cast<const __m128i *>(from));
    }

    static FFNSKIP_INLINE __m256 halves(const uint8_t * from) { return _mm256_cvtph_ps(load16(from)); }

    template <typename F> static FFNSKIP_INLINE __m256 scale(const Block & block, int64_t o) {
        if constexpr (F::scales == ChannelScales::k) {
            return _mm256_mul_ps(halves(block.rows.span[0] + o * 2),
                                 _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(load8(block.rows.scales[0] + o))));
        } else if constexpr (F::scales == ChannelScales::k_signed) {
            return _mm256_mul_ps(halves(block.rows.span[0] + o * 2),
                                 _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(load8(block.rows.scales[0] + o))));
        } else {
            return halves(block.rows.scales[0] + o * 2);
        }
    }

    template <typename F> static FFNSKIP_INLINE __m256 minimum(const Block & block, int64_t o) {
        if constexpr (F::scales == ChannelScales::k) {
            const __m256 t = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(load8(block.rows.scales[1] + o)));
            return _mm256_fnmadd_ps(halves(block.rows.span[1] + o * 2), t, _mm256_setzero_ps());
        } else {
            return halves(block.rows.scales[1] + o * 2);
        }
    }

    static FFNSKIP_INLINE __m256i load32(const uint8_t * from) {
        return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(from));
    }

    // Dwords of four channels' bytes, from 32 bytes of each.
    static FFNSKIP_INLINE void interleave(const uint8_t * const * row, int64_t at, __m256i to[4]) {
        const __m256i r0 = load32(row[0] + at), r1 = load32(row[1] + at), r2 = load32(row[2] + at),
                      r3 = load32(row[3] + at);
        const __m256i a = _mm256_unpacklo_epi8(r0, r1), b = _mm256_unpackhi_epi8(r0, r1);
        const __m256i c = _mm256_unpacklo_epi8(r2, r3), d = _mm256_unpackhi_epi8(r2, r3);
        to[0] = _mm256_unpacklo_epi16(a, c);
        to[1] = _mm256_unpackhi_epi16(a, c);
        to[2] = _mm256_unpacklo_epi16(b, d);
        to[3] = _mm256_unpackhi_epi16(b, d);
    }

    // From 8 bytes of each.
    static FFNSKIP_INLINE __m256i interleave8(const uint8_t * const * row, int64_t at) {
        const __m128i a = _mm_unpacklo_epi8(load8(row[0] + at), load8(row[1] + at));
        const __m128i b = _mm_unpacklo_epi8(load8(row[2] + at), load8(row[3] + at));
        return _mm256_set_m128i(_mm_unpackhi_epi16(a, b), _mm_unpacklo_epi16(a, b));
    }

    // Field k of the high bits, where a code has its fifth bit and sixth.
    template <typename F> static FFNSKIP_INLINE __m256i high_field(const __m256i * high, int k) {
        const int     shift = F::values == ChannelValues::five_bits ? 4 - k : 4 - k % 4 * 2;
        const __m256i from  = high[F::values == ChannelValues::five_bits ? 0 : k / 4];
        return shift > 0 ? _mm256_slli_epi16(from, shift) : _mm256_srli_epi16(from, -shift);
    }

    // Codes of up to six bits: pairs make at most 2 * 63 * 127, which 16 bits hold.
    static FFNSKIP_INLINE __m256i dot(__m256i sums, __m256i codes, __m256i x) {
        return _mm256_add_epi32(sums, _mm256_madd_epi16(_mm256_maddubs_epi16(codes, x), _mm256_set1_epi16(1)));
    }

    // Bytes: the products of pairs may not fit into 16 bits. `even` and `odd`: two inputs each, in 16 bits.
    static FFNSKIP_INLINE __m256i dot_bytes(__m256i sums, __m256i codes, __m256i even, __m256i odd) {
        const __m256i low = _mm256_and_si256(codes, _mm256_set1_epi16(255)), high = _mm256_srli_epi16(codes, 8);
        return _mm256_add_epi32(sums, _mm256_add_epi32(_mm256_madd_epi16(low, even), _mm256_madd_epi16(high, odd)));
    }

    template <typename F>
    static FFNSKIP_INLINE void add_codes(const Block & block, const Rows & next, int64_t group, int half,
                                         __m256i sums[8]) {
        // Codes of four bits: pairs of products are added up in 16 bits, 8 times 2 * 15 * 127 at most.
        constexpr bool four = F::values == ChannelValues::four_bits;
        for (int k = 0; k < 8; ++k) {
            sums[k] = _mm256_set1_epi32(four ? 0 : block.zero);
        }
        const __m256i low   = _mm256_set1_epi8(15);
        const __m256i fifth = _mm256_set1_epi8(F::values == ChannelValues::five_bits ? 0x10 : 0x30);
        for (int i = 0; i < block.rows.n; i += 4) {
            const __m256i x = _mm256_set1_epi32(four_codes(block.code + i));
            __m256i       u[4];
            interleave(block.rows.low + i, group * F::low + half * 32, u);
            if (half == 0) {
                fetch_channels<Avx2, F>(next, group, i, i + 4);
            }
            if constexpr (F::values == ChannelValues::eight_bits) {
                const __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8), odd = _mm256_srai_epi16(x, 8);
                __m256i       w[4];
                interleave(block.rows.low + i, group * F::low + half * 32 + 64, w);
                for (int k = 0; k < 4; ++k) {
                    sums[k]     = dot_bytes(sums[k], u[k], even, odd);
                    sums[k + 4] = dot_bytes(sums[k + 4], w[k], even, odd);
                }
            } else {
                __m256i h[2];
                if constexpr (F::values == ChannelValues::five_bits) {
                    h[0] = interleave8(block.rows.high + i, group * F::high + half * 8);
                } else if constexpr (F::values == ChannelValues::six_bits) {
                    __m256i all[4];
                    interleave(block.rows.high + i, group * F::high, all);
                    h[0] = all[half];
                    h[1] = all[2 + half];
                }
                for (int k = 0; k < 8; ++k) {
                    __m256i code = _mm256_and_si256(k < 4 ? u[k] : _mm256_srli_epi16(u[k - 4], 4), low);
                    if constexpr (F::high > 0) {
                        code = _mm256_or_si256(code, _mm256_and_si256(high_field<F>(h, k), fifth));
                    }
                    sums[k] = four ? _mm256_add_epi16(sums[k], _mm256_maddubs_epi16(code, x)) : dot(sums[k], code, x);
                }
            }
        }
        if (half == 0) {
            fetch_channels<Avx2, F>(next, group, block.rows.n, k_max_channel_block);
        }
        if constexpr (four) {
            for (int k = 0; k < 8; ++k) {
                sums[k] =
                    _mm256_add_epi32(_mm256_madd_epi16(sums[k], _mm256_set1_epi16(1)), _mm256_set1_epi32(block.zero));
            }
        }
    }

    template <typename F>
    static FFNSKIP_INLINE void add_floats(const Block & block, const Rows & next, int64_t group, float * y) {
        for (int half = 0; half < 2; ++half) {
            __m256 sums[8];  // vector k: of outputs 64 half + 8 k on
            for (int k = 0; k < 8; ++k) {
                sums[k] = _mm256_setzero_ps();
            }
            for (int i = 0; i < block.rows.n; ++i) {
                const __m256    x   = _mm256_set1_ps(block.value[i]);
                const uint8_t * row = block.rows.low[i] + group * F::low + half * F::low / 2;
                if (half == 0) {
                    fetch_channels<Avx2, F>(next, group, i, i + 1);
                }
                for (int k = 0; k < 8; ++k) {
                    sums[k] = _mm256_fmadd_ps(x, floats<F>(row, k), sums[k]);
                }
            }
            if (half == 0) {
                fetch_channels<Avx2, F>(next, group, block.rows.n, k_max_channel_block);
            }
            for (int k = 0; k < 8; ++k) {
                float * to = y + half * 64 + k * 8;
                _mm256_store_ps(to, _mm256_add_ps(_mm256_load_ps(to), sums[k]));
            }
        }
    }

    template <typename F> static FFNSKIP_INLINE __m256 floats(const uint8_t * row, int k) {
        if constexpr (F::values == ChannelValues::f32) {
            return _mm256_loadu_ps(reinterpret_cast<const float *>(row + k * 32));
        } else if constexpr (F::values == ChannelValues::f16) {
            return halves(row + k * 16);
        } else {
            return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load16(row + k * 16)), 16));
        }
    }
};

int64_t select(const float * v, const float * norms, float threshold, int64_t n_in, uint32_t * kept) {
    const __m256 sign = _mm256_set1_ps(-0.0f), least = _mm256_set1_ps(threshold);
    int64_t      n = 0, j = 0;
    for (; j + 32 <= n_in; j += 32) {
        uint32_t bits = 0;
        for (int i = 0; i < 32; i += 8) {
            const __m256 reach =
                _mm256_mul_ps(_mm256_andnot_ps(sign, _mm256_loadu_ps(v + j + i)), _mm256_loadu_ps(norms + j + i));
            bits |= uint32_t(_mm256_movemask_ps(_mm256_cmp_ps(reach, least, _CMP_NLT_UQ))) << i;
        }
        kept[j / 32] = bits;
        n += __builtin_popcount(bits);
    }
    return n + select_rest(v, norms, threshold, j, n_in, kept);
}

}  // namespace

const ChannelKernels k_avx2_kernels = { "AVX2", 4, select, prepare_input<PlainList>, multiply_channels<Avx2> };

}  // namespace ffnskip
