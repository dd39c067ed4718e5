#include "rows_cuda.h"

#include "thread_share.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

namespace ffnskip {
namespace {

constexpr int      k_warp    = 32;
constexpr int      k_threads = 256;  // of a block, that is, of a row: 4 groups each for n = 4096
constexpr unsigned k_all     = 0xffffffffu;

// ---- kernels ----

__device__ CosineSums sum_of_warp(CosineSums sums) {
    for (int distance = k_warp / 2; distance > 0; distance /= 2) {
        CosineSums other;
        other.xy = __shfl_down_sync(k_all, sums.xy, distance);
        other.xx = __shfl_down_sync(k_all, sums.xx, distance);
        other.yy = __shfl_down_sync(k_all, sums.yy, distance);
        sums.add(other);
    }
    return sums;  // in lane 0
}

__device__ CosineSums sum_of_block(CosineSums sums) {
    __shared__ float parts[3][k_warp];
    const int        lane = int(threadIdx.x) % k_warp;
    const int        warp = int(threadIdx.x) / k_warp;
    sums                  = sum_of_warp(sums);
    if (lane == 0) {
        parts[0][warp] = sums.xy;
        parts[1][warp] = sums.xx;
        parts[2][warp] = sums.yy;
    }
    __syncthreads();
    if (warp == 0) {
        sums = CosineSums();
        if (lane < k_threads / k_warp) {
            sums.xy = parts[0][lane];
            sums.xx = parts[1][lane];
            sums.yy = parts[2][lane];
        }
        sums = sum_of_warp(sums);
    }
    return sums;  // in thread 0
}

template <Pair pair> __global__ void __launch_bounds__(k_threads) cosine_of_rows(Rows a, Rows b, float * cosines) {
    const CosineSums share =
        share_of_cosine<pair>(a.row(blockIdx.x), b.row(blockIdx.x), a.n, int(threadIdx.x), k_threads);
    const CosineSums sums = sum_of_block(share);
    if (threadIdx.x == 0) {
        cosines[blockIdx.x] = sums.cosine();
    }
}

__global__ void __launch_bounds__(k_threads) zero_masked_rows(Rows rows, const uint8_t * mask) {
    if (mask[blockIdx.x] != 0) {
        share_of_zeros(rows.row(blockIdx.x), rows.n, int(threadIdx.x), k_threads);
    }
}

// ---- the runtime ----

void check(cudaError_t status, const char * call) {
    if (status != cudaSuccess) {
        throw std::runtime_error("CUDA: " + std::string(call) + ": " + cudaGetErrorString(status));
    }
}

#define FFNSKIP_CUDA_CHECK(call) check(call, #call)

// The calling thread's device, for as long as this lives: whose it was before may not notice.
class Device {
public:
    explicit Device(int device) {
        FFNSKIP_CUDA_CHECK(cudaGetDevice(&before_));
        if (before_ != device) {
            FFNSKIP_CUDA_CHECK(cudaSetDevice(device));
            changed_ = true;
        }
    }
    ~Device() {
        if (changed_) {
            cudaSetDevice(before_);
        }
    }
    Device(const Device &)             = delete;
    Device & operator=(const Device &) = delete;

private:
    int  before_  = 0;
    bool changed_ = false;
};

// Host memory under an address of the device too. What is in it is lost when it grows.
template <typename T> class Mapped {
public:
    Mapped() = default;
    ~Mapped() { cudaFreeHost(host_); }
    Mapped(const Mapped &)             = delete;
    Mapped & operator=(const Mapped &) = delete;

    void reserve(int64_t n) {
        if (n <= n_) {
            return;
        }
        FFNSKIP_CUDA_CHECK(cudaFreeHost(host_));
        host_ = nullptr;
        n_    = 0;
        FFNSKIP_CUDA_CHECK(
            cudaHostAlloc(reinterpret_cast<void **>(&host_), size_t(n) * sizeof(T), cudaHostAllocMapped));
        FFNSKIP_CUDA_CHECK(cudaHostGetDevicePointer(reinterpret_cast<void **>(&device_), host_, 0));
        n_ = n;
    }
    T * host() const { return host_; }
    T * device() const { return device_; }

private:
    T *     host_   = nullptr;
    T *     device_ = nullptr;
    int64_t n_      = 0;
};

class CudaKernels final : public RowKernels {
public:
    explicit CudaKernels(int device) : device_(device) {
        const Device current(device_);
        // ggml's streams don't wait for the default stream either. They are idle when a tensor is observed.
        FFNSKIP_CUDA_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
    }

    // At the end of the process the runtime may be gone already, and what it held with it.
    ~CudaKernels() override {
        cudaFree(kept_);
        cudaStreamDestroy(stream_);
    }

    void cosine(Pair pair, const Rows & a, const Rows & b) override {
        const Device current(device_);
        cosines_.reserve(a.n_rows);
        const auto kernel = pair == Pair::sum ? cosine_of_rows<Pair::sum> : cosine_of_rows<Pair::difference>;
        kernel<<<unsigned(a.n_rows), k_threads, 0, stream_>>>(a, b, cosines_.device());
        check(cudaGetLastError(), "launch of cosine_of_rows");
    }

    void zero(const Rows & rows, const uint8_t * mask) override {
        const Device current(device_);
        mask_.reserve(rows.n_rows);
        std::memcpy(mask_.host(), mask, size_t(rows.n_rows));
        zero_masked_rows<<<unsigned(rows.n_rows), k_threads, 0, stream_>>>(rows, mask_.device());
        check(cudaGetLastError(), "launch of zero_masked_rows");
    }

    Rows keep(const Rows & rows) override {
        const Device  current(device_);
        const int64_t row  = rows.n * int64_t(sizeof(float));
        const int64_t size = row * rows.n_rows;
        if (size > kept_size_) {
            FFNSKIP_CUDA_CHECK(cudaFree(kept_));
            kept_      = nullptr;
            kept_size_ = 0;
            FFNSKIP_CUDA_CHECK(cudaMalloc(reinterpret_cast<void **>(&kept_), size_t(size)));
            kept_size_ = size;
        }
        FFNSKIP_CUDA_CHECK(cudaMemcpy2DAsync(kept_, size_t(row), rows.data, size_t(rows.stride), size_t(row),
                                             size_t(rows.n_rows), cudaMemcpyDeviceToDevice, stream_));
        return { kept_, rows.n, rows.n_rows, row };
    }

    void read(const Rows & rows, float * to) override {
        const Device current(device_);
        const size_t row = size_t(rows.n) * sizeof(float);
        FFNSKIP_CUDA_CHECK(cudaMemcpy2DAsync(to, row, rows.data, size_t(rows.stride), row, size_t(rows.n_rows),
                                             cudaMemcpyDeviceToHost, stream_));
    }

    const float * finish() override {
        FFNSKIP_CUDA_CHECK(cudaStreamSynchronize(stream_));
        return cosines_.host();
    }

private:
    int             device_;
    cudaStream_t    stream_ = nullptr;
    Mapped<float>   cosines_;
    Mapped<uint8_t> mask_;
    float *         kept_      = nullptr;
    int64_t         kept_size_ = 0;  // bytes
};

}  // namespace

std::unique_ptr<RowKernels> make_cuda_kernels(const void * data) {
    cudaPointerAttributes attributes{};
    FFNSKIP_CUDA_CHECK(cudaPointerGetAttributes(&attributes, data));
    return std::make_unique<CudaKernels>(attributes.device);
}

}  // namespace ffnskip
