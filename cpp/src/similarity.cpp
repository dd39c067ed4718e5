#include "similarity.h"

namespace ffnskip {
namespace {

constexpr int k_lanes = 16;  // independent partial sums: one AVX-512 or four NEON registers, vectorised without -ffast-math

template <Pair pair> float cosine_of(const float * a, const float * b, int64_t n) {
    float      xy[k_lanes] = {}, xx[k_lanes] = {}, yy[k_lanes] = {};
    const auto add = [&](int k, float a_i, float b_i) {
        const float x = first_of<pair>(a_i, b_i), y = second_of<pair>(a_i, b_i);
        xy[k] += x * y;
        xx[k] += x * x;
        yy[k] += y * y;
    };
    int64_t i = 0;
    for (; i + k_lanes <= n; i += k_lanes) {
        for (int k = 0; k < k_lanes; ++k) {
            add(k, a[i + k], b[i + k]);
        }
    }
    for (; i < n; ++i) {
        add(0, a[i], b[i]);
    }
    CosineSums sums;
    for (int k = 0; k < k_lanes; ++k) {
        sums.add({ xy[k], xx[k], yy[k] });
    }
    return sums.cosine();
}

}  // namespace

float cosine(Pair pair, const float * a, const float * b, int64_t n) {
    return pair == Pair::sum ? cosine_of<Pair::sum>(a, b, n) : cosine_of<Pair::difference>(a, b, n);
}

}  // namespace ffnskip
