// Property: the kernels give the cosine of float64, whatever the length, the alignment and the stride of rows, and zero the
// masked rows and nothing else.   test_rows_cuda [few]
#include "expect.h"
#include "gpu.h"
#include "rows_cuda.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

using namespace ffnskip;

namespace {

// float32 sums of n / 256 products a thread, then of a tree of 8 levels; n is at most 11008 here.
constexpr double k_rounding = 5e-6;

const float k_nan = std::numeric_limits<float>::quiet_NaN();

// [n_rows, n] from `offset` floats behind an aligned address; what is not of a row is NaN, which would be noticed.
struct Matrix {
    Matrix(int64_t n, int64_t n_rows, int64_t offset, int64_t padding)
        : n(n), n_rows(n_rows), offset(offset), stride(n + padding), values(size_t(offset + n_rows * stride), k_nan) {}

    float & at(int64_t r, int64_t i) { return values[size_t(offset + r * stride + i)]; }
    Rows on(const GpuFloats & gpu) const { return { gpu.data() + offset, n, n_rows, stride * int64_t(sizeof(float)) }; }

    int64_t            n, n_rows, offset, stride;
    std::vector<float> values;
};

bool same_bits(const std::vector<float> & a, const std::vector<float> & b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

double exact_cosine(Pair pair, Matrix & a, Matrix & b, int64_t r) {
    double xy = 0, xx = 0, yy = 0;
    for (int64_t i = 0; i < a.n; ++i) {
        const double first = a.at(r, i), second = b.at(r, i);
        const double x = pair == Pair::difference ? first - second : first;
        const double y = pair == Pair::sum ? first + second : first;
        xy += x * y;
        xx += x * x;
        yy += y * y;
    }
    return xy / std::sqrt(xx * yy);
}

void fill(Matrix & a, Matrix & b, uint32_t seed) {
    std::mt19937                    random(seed);
    std::normal_distribution<float> normal;
    for (int64_t r = 0; r < a.n_rows; ++r) {
        for (int64_t i = 0; i < a.n; ++i) {
            a.at(r, i) = normal(random);
            b.at(r, i) = a.at(r, i) + 0.5f * normal(random);
        }
    }
}

void cosines(int64_t n, int64_t n_rows, int64_t offset, int64_t padding) {
    Matrix a(n, n_rows, offset, padding), b(n, n_rows, 0, 0);
    fill(a, b, uint32_t(n * 31 + n_rows));
    const GpuFloats gpu_a(a.values), gpu_b(b.values);
    const auto      kernels = make_cuda_kernels(gpu_a.data());
    for (const Pair pair : { Pair::sum, Pair::difference }) {
        kernels->cosine(pair, a.on(gpu_a), b.on(gpu_b));
        const float *            result = kernels->finish();
        const std::vector<float> got(result, result + n_rows);
        for (int64_t r = 0; r < n_rows; ++r) {
            const double expected = exact_cosine(pair, a, b, r);
            expect(std::fabs(double(got[size_t(r)]) - expected) < k_rounding,
                   "cosine, pair " + std::to_string(int(pair)) + ", row " + std::to_string(r) + " of " +
                       std::to_string(n_rows) + " x " + std::to_string(n) + ", offset " + std::to_string(offset) +
                       ", padding " + std::to_string(padding) + ": " + std::to_string(got[size_t(r)]) + ", float64 " +
                       std::to_string(expected));
        }
        // Alone, a row has the same similarity to the bit.
        const int64_t last  = n_rows - 1;
        Rows          one_a = a.on(gpu_a), one_b = b.on(gpu_b);
        one_a.data += last * a.stride;
        one_b.data += last * b.stride;
        one_a.n_rows = one_b.n_rows = 1;
        kernels->cosine(pair, one_a, one_b);
        expect(kernels->finish()[0] == got[size_t(last)], "a row does not depend on the others");
    }
    expect(same_bits(gpu_a.get(), a.values) && same_bits(gpu_b.get(), b.values), "operands are only read");
}

float cosine_of(const std::vector<float> & a, const std::vector<float> & b, Pair pair = Pair::sum) {
    const GpuFloats gpu_a(a), gpu_b(b);
    const int64_t   n       = int64_t(a.size());
    const auto      kernels = make_cuda_kernels(gpu_a.data());
    kernels->cosine(pair, { gpu_a.data(), n, 1, 0 }, { gpu_b.data(), n, 1, 0 });
    return kernels->finish()[0];
}

void edges(int64_t n) {
    std::vector<float> ones(size_t(n), 1.0f), zeros(size_t(n), 0.0f), noise(size_t(n), 0.0f);
    std::mt19937       random{ uint32_t(n) };
    for (float & value : noise) {
        value = std::normal_distribution<float>()(random);
    }
    expect(cosine_of(noise, zeros) == 1.0f, "nothing added: exactly 1");
    expect(cosine_of(noise, zeros, Pair::difference) == 1.0f, "nothing taken away: exactly 1");
    expect(cosine_of(zeros, ones) == 0.0f && cosine_of(zeros, zeros) == 0.0f, "zeros: 0");
    expect(cosine_of(ones, ones, Pair::difference) == 0.0f, "ones less themselves: 0");
    for (const float value : { k_nan, std::numeric_limits<float>::infinity(), 1e30f }) {
        for (const size_t at : { size_t(0), size_t(n - 1) }) {
            std::vector<float> bad = ones;
            bad[at]                = value;
            expect(std::isnan(cosine_of(bad, ones)) && std::isnan(cosine_of(ones, bad)),
                   "not finite, or too large: NaN");
        }
    }
}

void masked(int64_t n, int64_t n_rows, int64_t offset, int64_t padding) {
    Matrix unused(n, n_rows, 0, 0), to(n, n_rows, offset, padding);
    fill(unused, to, uint32_t(n + n_rows));
    std::vector<uint8_t> mask;
    Matrix               zeroed = to;
    for (int64_t r = 0; r < n_rows; ++r) {
        mask.push_back(uint8_t(r % 3 == 0));
        for (int64_t i = 0; i < n && mask.back(); ++i) {
            zeroed.at(r, i) = 0.0f;
        }
    }
    const GpuFloats   gpu_f(to.values);
    const auto        kernels = make_cuda_kernels(gpu_f.data());
    const std::string what = std::to_string(n_rows) + " x " + std::to_string(n) + ", offset " + std::to_string(offset);

    const Rows         kept = kernels->keep(to.on(gpu_f));
    std::vector<float> kept_rows(size_t(n * n_rows), k_nan), rows;
    kernels->zero(to.on(gpu_f), mask.data());
    kernels->read(kept, kept_rows.data());
    kernels->finish();
    for (int64_t r = 0; r < n_rows; ++r) {
        rows.insert(rows.end(), &to.at(r, 0), &to.at(r, 0) + n);
    }
    expect(same_bits(gpu_f.get(), zeroed.values), "zeros in masked rows: " + what);
    expect(same_bits(kept_rows, rows), "kept rows are those before: " + what);
}

}  // namespace

int main(int argc, char ** argv) {
    need_gpu();
    // Under a sanitizer, which is slow: a few shapes.
    const bool                 few = argc > 1 && std::strcmp(argv[1], "few") == 0;
    const std::vector<int64_t> lengths =
        few ? std::vector<int64_t>{ 3, 33, 4096 }
            : std::vector<int64_t>{ 1, 3, 4, 5, 31, 32, 33, 1023, 1024, 1025, 4096, 11008 };
    for (const int64_t n : lengths) {
        for (const int64_t n_rows : { 1, 2, 65 }) {
            for (const int64_t offset : { 0, 1, 4 }) {
                for (const int64_t padding : { 0, 1, 4 }) {
                    cosines(n, n_rows, offset, padding);
                    masked(n, n_rows, offset, padding);
                }
            }
        }
    }
    for (const int64_t n : { 1, 17, 4096 }) {
        edges(n);
    }
    return result();
}
