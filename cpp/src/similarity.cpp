#include "similarity.h"

#include "cosine_sums.h"

namespace ffnskip {
namespace {

constexpr int k_lanes = 16;  // independent partial sums: one AVX-512 or four NEON registers, vectorised without -ffast-math

// cos(x, y) where elements(i, x, y) yields element i of both.
template <typename Elements> float cosine_of(int64_t n, Elements elements) {
    float xy[k_lanes] = {}, xx[k_lanes] = {}, yy[k_lanes] = {};

    int64_t i = 0;
    for (; i + k_lanes <= n; i += k_lanes) {
        for (int k = 0; k < k_lanes; ++k) {
            float x, y;
            elements(i + k, x, y);
            xy[k] += x * y;
            xx[k] += x * x;
            yy[k] += y * y;
        }
    }
    for (; i < n; ++i) {
        float x, y;
        elements(i, x, y);
        xy[0] += x * y;
        xx[0] += x * x;
        yy[0] += y * y;
    }
    CosineSums sums;
    for (int k = 0; k < k_lanes; ++k) {
        sums.add({ xy[k], xx[k], yy[k] });
    }
    return sums.cosine();
}

template <Pair pair> float cosine_of_pair(const float * a, const float * b, int64_t n) {
    return cosine_of(n, [=](int64_t i, float & x, float & y) {
        x = first_of<pair>(a[i], b[i]);
        y = second_of<pair>(a[i], b[i]);
    });
}

}  // namespace

float cosine(const float * a, const float * b, int64_t n) {
    return cosine_of_pair<Pair::given>(a, b, n);
}

float cosine_with_sum(const float * h, const float * f, int64_t n) {
    return cosine_of_pair<Pair::sum>(h, f, n);
}

float cosine_with_difference(const float * out, const float * f, int64_t n) {
    return cosine_of_pair<Pair::difference>(out, f, n);
}

}  // namespace ffnskip
