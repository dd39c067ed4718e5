// Property: the shares that the threads of a CUDA block have of a row add up to the cosine in float64. Run on the host,
// with the tree of a block's warp shuffles written out; the kernel itself is tested on a GPU, by tests/cuda.
#include "expect.h"
#include "similarity.h"
#include "thread_share.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <random>
#include <vector>

using namespace ffnskip;

namespace {

constexpr int k_warp = 32, k_threads = 256;

// Sums of up to 16 elements a thread in float32, then of 8 + 3 levels of a tree.
constexpr double k_rounding = 2e-6;

CosineSums tree(std::vector<CosineSums> sums) {
    for (size_t distance = sums.size() / 2; distance > 0; distance /= 2) {
        for (size_t i = 0; i < distance; ++i) {
            sums[i].add(sums[i + distance]);
        }
    }
    return sums[0];
}

template <Pair pair> float block_cosine(const float * a, const float * b, int64_t n) {
    std::vector<CosineSums> warps;
    for (int warp = 0; warp < k_threads / k_warp; ++warp) {
        std::vector<CosineSums> lanes;
        for (int lane = 0; lane < k_warp; ++lane) {
            lanes.push_back(share_of_cosine<pair>(a, b, n, warp * k_warp + lane, k_threads));
        }
        warps.push_back(tree(lanes));
    }
    return tree(warps).cosine();
}

double exact_cosine(const std::vector<double> & x, const std::vector<double> & y) {
    double xy = 0, xx = 0, yy = 0;
    for (size_t i = 0; i < x.size(); ++i) {
        xy += x[i] * y[i];
        xx += x[i] * x[i];
        yy += y[i] * y[i];
    }
    return xy / std::sqrt(xx * yy);
}

void compare_with_float64(int64_t n, int offset_a, int offset_b) {
    std::mt19937                    random{ uint32_t(n) };
    std::normal_distribution<float> normal;
    // Beyond the row is what would be noticed if it were read.
    std::vector<float>  a(size_t(n) + 8, std::numeric_limits<float>::quiet_NaN()), b = a;
    std::vector<double> given, sum, difference;
    for (int64_t i = 0; i < n; ++i) {
        const float x = normal(random), y = x + 0.5f * normal(random);
        a[size_t(i + offset_a)] = x;
        b[size_t(i + offset_b)] = y;
        given.push_back(x);
        sum.push_back(double(x) + double(y));
        difference.push_back(double(x) - double(y));
    }
    const float *     row_a = a.data() + offset_a;
    const float *     row_b = b.data() + offset_b;
    const std::string where =
        " of " + std::to_string(n) + " from " + std::to_string(offset_a) + ", " + std::to_string(offset_b);
    const auto near = [&](float got, double expected, float host, const std::string & what) {
        expect(std::fabs(double(got) - expected) < k_rounding,
               what + where + ": " + std::to_string(got) + ", float64 " + std::to_string(expected));
        expect(std::fabs(double(got) - double(host)) < 2e-5, what + where + ": as on the host");
    };
    near(block_cosine<Pair::sum>(row_a, row_b, n), exact_cosine(given, sum), cosine<Pair::sum>(row_a, row_b, n),
         "a, a + b");
    near(block_cosine<Pair::difference>(row_a, row_b, n), exact_cosine(difference, given),
         cosine<Pair::difference>(row_a, row_b, n), "a - b, a");
}

void edges() {
    const float        nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
    std::vector<float> ones(4096, 1.0f), zeros(4096, 0.0f), noise(4096);
    std::mt19937       random{ 1 };
    for (float & value : noise) {
        value = std::normal_distribution<float>()(random);
    }
    expect(block_cosine<Pair::sum>(noise.data(), zeros.data(), 4096) == 1.0f,
           "a row and itself plus nothing: exactly 1");
    expect(block_cosine<Pair::difference>(noise.data(), zeros.data(), 4096) == 1.0f,
           "a row less nothing and itself: exactly 1");
    expect(block_cosine<Pair::sum>(zeros.data(), ones.data(), 4096) == 0.0f, "zeros and ones: 0");
    expect(block_cosine<Pair::difference>(ones.data(), ones.data(), 4096) == 0.0f, "ones less themselves: 0");
    expect(block_cosine<Pair::sum>(zeros.data(), zeros.data(), 4096) == 0.0f, "zeros and zeros: 0");
    for (const float value : { nan, inf, -inf, 1e30f }) {
        for (const size_t at : { size_t(0), size_t(4095) }) {
            std::vector<float> bad = ones;
            bad[at]                = value;
            expect(std::isnan(block_cosine<Pair::sum>(bad.data(), ones.data(), 4096)), "not finite, or too large: NaN");
            expect(std::isnan(block_cosine<Pair::sum>(ones.data(), bad.data(), 4096)), "not finite, or too large: NaN");
        }
    }
}

void zeros(int64_t n, int offset) {
    alignas(16) float row[1100];
    std::fill_n(row, 1100, 1.0f);
    for (int t = 0; t < k_threads; ++t) {
        share_of_zeros(row + offset, n, t, k_threads);
    }
    for (int64_t i = 0; i < 1100; ++i) {
        const bool inside = i >= offset && i < offset + n;
        if (row[i] != (inside ? 0.0f : 1.0f)) {
            expect(false, std::to_string(n) + " zeros from " + std::to_string(offset));
            return;
        }
    }
}

}  // namespace

int main() {
    for (const int64_t n : { 1, 3, 4, 5, 31, 32, 33, 1023, 1024, 1025, 4096 }) {
        for (const int offset_a : { 0, 1, 4 }) {
            for (const int offset_b : { 0, 3 }) {
                compare_with_float64(n, offset_a, offset_b);
            }
            if (n < 1090) {
                zeros(n, offset_a);
            }
        }
    }
    edges();
    return result();
}
