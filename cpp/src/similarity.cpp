#include "similarity.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace ffnskip {
namespace {

constexpr int k_lanes = 16;  // independent partial sums: one AVX-512 or four NEON registers, vectorised without -ffast-math

// cos(x, y) where pair(i, x, y) yields element i of both.
template <typename Pair>
float cosine_of(int64_t n, Pair pair) {
    float xy[k_lanes] = {}, xx[k_lanes] = {}, yy[k_lanes] = {};

    int64_t i = 0;
    for (; i + k_lanes <= n; i += k_lanes) {
        for (int k = 0; k < k_lanes; ++k) {
            float x, y;
            pair(i + k, x, y);
            xy[k] += x * y;
            xx[k] += x * x;
            yy[k] += y * y;
        }
    }
    for (; i < n; ++i) {
        float x, y;
        pair(i, x, y);
        xy[0] += x * y;
        xx[0] += x * x;
        yy[0] += y * y;
    }
    float dot = 0, norm_x = 0, norm_y = 0;
    for (int k = 0; k < k_lanes; ++k) {
        dot += xy[k];
        norm_x += xx[k];
        norm_y += yy[k];
    }
    if (!std::isfinite(dot) || !std::isfinite(norm_x) || !std::isfinite(norm_y)) {
        return std::numeric_limits<float>::quiet_NaN();
    }
    if (norm_x == 0.0f || norm_y == 0.0f) {
        return 0.0f;
    }
    // In double the root of the product is exact where x = y, so that a block that adds nothing has similarity 1; rounding
    // never takes it beyond, where no threshold above 1 may be reached.
    const double value = double(dot) / std::sqrt(double(norm_x) * double(norm_y));
    return float(std::clamp(value, -1.0, 1.0));
}

}  // namespace

float cosine(const float * a, const float * b, int64_t n) {
    return cosine_of(n, [=](int64_t i, float & x, float & y) { x = a[i]; y = b[i]; });
}

float cosine_with_sum(const float * h, const float * f, int64_t n) {
    return cosine_of(n, [=](int64_t i, float & x, float & y) { x = h[i]; y = h[i] + f[i]; });
}

float cosine_with_difference(const float * out, const float * f, int64_t n) {
    return cosine_of(n, [=](int64_t i, float & x, float & y) { x = out[i] - f[i]; y = out[i]; });
}

}  // namespace ffnskip
