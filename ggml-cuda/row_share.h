// A thread's share of the work on a row: plain C++, so that tests without a GPU add up the shares of all threads.
#pragma once

#include "cosine_sums.h"

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
FFNSKIP_HOST_DEVICE inline CosineSums share_of_cosine(const float * a, const float * b, int64_t n, int t, int n_threads) {
    CosineSums sums;
    int64_t    done = 0;
    if (in_fours(a, b)) {
        const Four *  fours_a = reinterpret_cast<const Four *>(a);
        const Four *  fours_b = reinterpret_cast<const Four *>(b);
        const int64_t n_fours = n / 4;
#ifdef __CUDA_ARCH__
#pragma unroll 4  // several loads under way before the first is needed
#endif
        for (int64_t i = t; i < n_fours; i += n_threads) {
            const Four four_a = fours_a[i];
            const Four four_b = fours_b[i];
            for (int k = 0; k < 4; ++k) {
                sums.add(first_of<pair>(four_a.at[k], four_b.at[k]), second_of<pair>(four_a.at[k], four_b.at[k]));
            }
        }
        done = n_fours * 4;
    }
    for (int64_t i = done + t; i < n; i += n_threads) {
        sums.add(first_of<pair>(a[i], b[i]), second_of<pair>(a[i], b[i]));
    }
    return sums;
}

// Copies the same share of a row; from null: zeros.
FFNSKIP_HOST_DEVICE inline void share_of_copy(const float * from, float * to, int64_t n, int t, int n_threads) {
    int64_t done = 0;
    if (in_fours(from, to)) {
        const Four *  fours_from = reinterpret_cast<const Four *>(from);
        Four *        fours_to   = reinterpret_cast<Four *>(to);
        const int64_t n_fours    = n / 4;
        for (int64_t i = t; i < n_fours; i += n_threads) {
            fours_to[i] = from == nullptr ? Four{} : fours_from[i];
        }
        done = n_fours * 4;
    }
    for (int64_t i = done + t; i < n; i += n_threads) {
        to[i] = from == nullptr ? 0.0f : from[i];
    }
}

}  // namespace ffnskip
