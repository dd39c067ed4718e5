// Cosine similarity of the residual before and after an FFN block: the paper's section 3.1, Figure 2.
// CUDA's compiler reads this too.
#pragma once

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define FFNSKIP_HOST_DEVICE __host__ __device__
#else
#define FFNSKIP_HOST_DEVICE
#endif

namespace ffnskip {

// Which two vectors two tensors a and b stand for.
enum class Pair {
    sum,         // a, a + b     h and f, before they are added
    difference,  // a - b, a     out and f, where h never exists on its own
};

// An element of the one and of the other, from one of each tensor.
template <Pair pair> FFNSKIP_HOST_DEVICE inline void elements(float a, float b, float & x, float & y) {
    x = pair == Pair::sum ? a : a - b;
    y = pair == Pair::sum ? a + b : a;
}

struct CosineSums {
    float xy = 0, xx = 0, yy = 0;

    FFNSKIP_HOST_DEVICE void add(float x, float y) { add({ x * y, x * x, y * y }); }
    FFNSKIP_HOST_DEVICE void add(const CosineSums & other) {
        xy += other.xy;
        xx += other.xx;
        yy += other.yy;
    }

    // 0 where a vector is all zeros; NaN where an element is not finite or a sum overflows.
    FFNSKIP_HOST_DEVICE float cosine() const {
        // Of finite sums and of no others, the difference to itself is 0.
        if (xy - xy != 0.0f || xx - xx != 0.0f || yy - yy != 0.0f) {
            return NAN;
        }
        if (xx == 0.0f || yy == 0.0f) {
            return 0.0f;
        }
        // In double the root of the product is exact where x = y, so that a block that adds nothing has similarity 1;
        // rounding never takes it beyond, where no threshold above 1 may be reached.
        const double value = double(xy) / sqrt(double(xx) * double(yy));
        return float(fmin(fmax(value, -1.0), 1.0));
    }
};

// On the host: the cosine of the pair of two float32 vectors of n elements, accumulated in float32. No threshold is
// ever reached by NaN.
template <Pair pair> float cosine(const float * a, const float * b, int64_t n) {
    constexpr int k_lanes = 16;  // independent sums: one AVX-512 or four NEON registers, vectorised without -ffast-math
    float         xy[k_lanes] = {}, xx[k_lanes] = {}, yy[k_lanes] = {};
    const auto    add = [&](int k, float a_i, float b_i) {
        float x, y;
        elements<pair>(a_i, b_i, x, y);
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
    for (int k = 0; i + k < n; ++k) {
        add(k, a[i + k], b[i + k]);
    }
    CosineSums sums;
    for (int k = 0; k < k_lanes; ++k) {
        sums.add({ xy[k], xx[k], yy[k] });
    }
    return sums.cosine();
}

}  // namespace ffnskip
