// The sums a cosine is made of, and the cosine they make: the same for the host and for CUDA, whose compiler reads this too.
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

template <Pair pair> FFNSKIP_HOST_DEVICE inline float first_of(float a, float b) {
    return pair == Pair::difference ? a - b : a;
}

template <Pair pair> FFNSKIP_HOST_DEVICE inline float second_of(float a, float b) {
    return pair == Pair::sum ? a + b : a;
}

struct CosineSums {
    float xy = 0, xx = 0, yy = 0;

    FFNSKIP_HOST_DEVICE void add(float x, float y) {
        xy += x * y;
        xx += x * x;
        yy += y * y;
    }

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

}  // namespace ffnskip
