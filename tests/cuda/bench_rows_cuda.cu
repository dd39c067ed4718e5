// How long a check takes on a GPU, next to what it can't be shorter than. Prints one JSON object; all times in
// microseconds, medians.
//
//   one_row     what a check of one token costs, waiting included; its floor is a kernel that does nothing, waited for
//   fetched     the same without the kernel: both rows copied to the host and compared there
//   many_rows   2 GiB of rows, where memory bandwidth decides; the floor is the bytes over the bandwidth of a copy
#include "gpu.h"
#include "rows_cuda.h"
#include "similarity.h"

#include <algorithm>
#include <chrono>
#include <functional>
#include <random>
#include <vector>

using namespace ffnskip;

namespace {

constexpr int64_t k_n    = 4096;   // LLaMA-7B
constexpr int64_t k_rows = 65536;  // 1 GiB a matrix: far more than any cache
constexpr int     k_sets = 64;     // of single rows, taken in turn

__global__ void nothing() {}

double median_us(int n, const std::function<void(int)> & step) {
    for (int i = 0; i < 20; ++i) {
        step(i);
    }
    std::vector<double> times;
    for (int i = 0; i < n; ++i) {
        const auto start = std::chrono::steady_clock::now();
        step(i);
        times.push_back(std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count());
    }
    std::nth_element(times.begin(), times.begin() + n / 2, times.end());
    return times[size_t(n / 2)];
}

}  // namespace

int main() {
    need_gpu();
    cudaDeviceProp device{};
    GPU(cudaGetDeviceProperties(&device, 0));
    cudaStream_t stream = nullptr;
    GPU(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));

    std::mt19937                    random{ 1 };
    std::normal_distribution<float> normal;
    std::vector<float>              values(size_t(k_n * k_sets));
    for (float & value : values) {
        value = normal(random);
    }
    GpuFloats a(size_t(k_n * k_rows)), b(size_t(k_n * k_rows));
    for (int64_t r = 0; r < k_rows; r += k_sets) {
        const size_t bytes = values.size() * sizeof(float);
        GPU(cudaMemcpy(a.data() + r * k_n, values.data(), bytes, cudaMemcpyHostToDevice));
        GPU(cudaMemcpy(b.data() + r * k_n, values.data(), bytes, cudaMemcpyHostToDevice));
    }
    const int64_t stride = k_n * int64_t(sizeof(float));
    const auto    rows   = [&](const GpuFloats & from, int64_t first, int64_t n) {
        return Rows{ from.data() + first * k_n, k_n, n, stride };
    };
    const auto kernels = make_cuda_kernels(a.data());

    const double       floor_us   = median_us(2000, [&](int) {
        nothing<<<1, 256, 0, stream>>>();
        GPU(cudaStreamSynchronize(stream));
    });
    const double       one_row_us = median_us(2000, [&](int i) {
        kernels->cosine(Pair::sum, rows(a, i % k_sets, 1), rows(b, i % k_sets, 1));
        kernels->finish();
    });
    std::vector<float> host_a(k_n), host_b(k_n);
    volatile float     sink       = 0;
    const double       fetched_us = median_us(2000, [&](int i) {
        const size_t bytes = size_t(stride);
        GPU(cudaMemcpyAsync(host_a.data(), rows(a, i % k_sets, 1).data, bytes, cudaMemcpyDeviceToHost,
                            cudaStreamPerThread));
        GPU(cudaStreamSynchronize(cudaStreamPerThread));
        GPU(cudaMemcpyAsync(host_b.data(), rows(b, i % k_sets, 1).data, bytes, cudaMemcpyDeviceToHost,
                            cudaStreamPerThread));
        GPU(cudaStreamSynchronize(cudaStreamPerThread));
        sink = cosine<Pair::sum>(host_a.data(), host_b.data(), k_n);
    });

    const double bytes        = 2.0 * double(k_rows) * double(stride);  // read by a cosine; read and written by a copy
    const double copy_us      = median_us(20, [&](int) {
        GPU(cudaMemcpyAsync(b.data(), a.data(), size_t(k_rows * stride), cudaMemcpyDeviceToDevice, stream));
        GPU(cudaStreamSynchronize(stream));
    });
    const double many_rows_us = median_us(20, [&](int) {
        kernels->cosine(Pair::sum, rows(a, 0, k_rows), rows(b, 0, k_rows));
        kernels->finish();
    });
    const std::vector<uint8_t> mask(size_t(k_rows), 1);
    const double               masked_zero_us = median_us(20, [&](int) {
        kernels->zero(rows(b, 0, k_rows), mask.data());
        kernels->finish();
    });
    std::printf(
        "{\"device\": \"%s\", \"n\": %d, \"one_row_us\": %.2f, \"one_row_floor_us\": %.2f, \"fetched_us\": %.2f, "
        "\"many_rows\": %d, \"many_rows_us\": %.1f, \"masked_zero_us\": %.1f, \"copy_floor_us\": %.1f, "
        "\"copy_gb_per_s\": %.0f}\n",
        device.name, int(k_n), one_row_us, floor_us, fetched_us, int(k_rows), many_rows_us, masked_zero_us, copy_us,
        bytes / copy_us * 1e-3);
    return 0;
}
