// A thread's share of the work on a row: plain C++, so that tests without a GPU add up the shares of all threads.
#pragma once

#include "similarity.h"

#include <cstdint>

namespace ffnskip {

// 16 bytes, which a thread loads or stores at once.
struct alignas(16) Four {
    float at[4];
};

FFNSKIP_HOST_DEVICE inline bool in_fours(const void * a, const void * b) {
    return ((reinterpret_cast<uintptr_t>(a) | reinterpret_cast<uintptr_t>(b)) % sizeof(Four)) == 0;
}

// The sums of every n_threads-th group of elements of a row, from group t on.
template <Pair pair>
FFNSKIP_HOST_DEVICE inline CosineSums share_of_cosine(const float * a, const float * b, int64_t n, int t,
                                                      int n_threads) {
    CosineSums sums;
    const auto add = [&](float a_i, float b_i) {
        float x, y;
        elements<pair>(a_i, b_i, x, y);
        sums.add(x, y);
    };
    const int64_t n_fours = in_fours(a, b) ? n / 4 : 0;
#ifdef __CUDA_ARCH__
#pragma unroll 4  // several loads under way before the first is needed
#endif
    for (int64_t i = t; i < n_fours; i += n_threads) {
        const Four four_a = reinterpret_cast<const Four *>(a)[i];
        const Four four_b = reinterpret_cast<const Four *>(b)[i];
        for (int k = 0; k < 4; ++k) {
            add(four_a.at[k], four_b.at[k]);
        }
    }
    for (int64_t i = n_fours * 4 + t; i < n; i += n_threads) {
        add(a[i], b[i]);
    }
    return sums;
}

// Zeros in the same share of a row.
FFNSKIP_HOST_DEVICE inline void share_of_zeros(float * row, int64_t n, int t, int n_threads) {
    const int64_t n_fours = in_fours(row, row) ? n / 4 : 0;
    for (int64_t i = t; i < n_fours; i += n_threads) {
        reinterpret_cast<Four *>(row)[i] = Four{};
    }
    for (int64_t i = n_fours * 4 + t; i < n; i += n_threads) {
        row[i] = 0.0f;
    }
}

}  // namespace ffnskip
