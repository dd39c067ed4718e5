// 16-bit floats, without a call of ggml: for files that are compiled for one instruction set, too.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __F16C__
#include <immintrin.h>
#endif

namespace ffnskip {
namespace {  // each file's own: what is compiled for a wider instruction set must not be linked into another file

template <typename To, typename From> inline To bits_as(From from) {
    static_assert(sizeof(To) == sizeof(From), "as many bits");
    To to;
    std::memcpy(&to, &from, sizeof(to));
    return to;
}

inline float from_half(uint16_t half) {
#ifdef __F16C__
    return _cvtsh_ss(half);
#elif defined(__aarch64__)
    return bits_as<__fp16>(half);
#else
    // The exponent's bias differs by 112; done by a product, subnormals come out right. Infinity and what is not a
    // number have the highest exponent.
    const uint32_t sign = uint32_t(half & 0x8000) << 16, rest = half & 0x7fff;
    const uint32_t bits = bits_as<uint32_t>(bits_as<float>(rest << 13) * 0x1p112f);
    return bits_as<float>(sign | bits | (rest >= 0x7c00 ? 0x7f800000 : 0));
#endif
}

// To the nearest, ties to even.
inline uint16_t to_half(float value) {
#ifdef __F16C__
    return _cvtss_sh(value, 0);
#elif defined(__aarch64__)
    return bits_as<uint16_t>(__fp16(value));
#else
    const uint32_t bits = bits_as<uint32_t>(value), sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
    if (rest > 0x7f800000) {
        return uint16_t(sign | 0x7e00);
    }
    if (rest >= 0x477ff000) {  // 65520, which rounds to infinity
        return uint16_t(sign | 0x7c00);
    }
    if (rest < 0x38800000) {  // subnormal: in steps of 2^-24, which the sum with 0.5 rounds to
        return uint16_t(sign | (bits_as<uint32_t>(bits_as<float>(rest) + 0.5f) - 0x3f000000));
    }
    return uint16_t(sign | (rest - 0x38000000 + 0xfff + (rest >> 13 & 1)) >> 13);
#endif
}

inline float from_bfloat(uint16_t value) {
    return bits_as<float>(uint32_t(value) << 16);
}

inline uint16_t to_bfloat(float value) {
    const uint32_t bits = bits_as<uint32_t>(value);
    return (bits & 0x7fffffff) > 0x7f800000 ? uint16_t(bits >> 16 | 64)
                                            : uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

}  // namespace
}  // namespace ffnskip
