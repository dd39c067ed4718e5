// Memory on the GPU for the programs here, and a way out where there is none.
#pragma once

#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

constexpr int k_skipped = 77;  // exit status of a test that could not run

#define GPU(call)                                                                                           \
    do {                                                                                                    \
        const cudaError_t status = (call);                                                                  \
        if (status != cudaSuccess) {                                                                        \
            std::fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(status)); \
            std::exit(1);                                                                                   \
        }                                                                                                   \
    } while (0)

inline void need_gpu() {
    int               n_devices = 0;
    const cudaError_t status    = cudaGetDeviceCount(&n_devices);
    if (status != cudaSuccess || n_devices == 0) {
        std::fprintf(stderr, "no CUDA device here: %s\n", cudaGetErrorString(status));
        std::exit(k_skipped);
    }
}

// Floats of the device, at an address that is aligned to 16 bytes.
class GpuFloats {
public:
    explicit GpuFloats(size_t n) : n_(n) { GPU(cudaMalloc(reinterpret_cast<void **>(&data_), n * sizeof(float))); }
    explicit GpuFloats(const std::vector<float> & values) : GpuFloats(values.size()) {
        GPU(cudaMemcpy(data_, values.data(), n_ * sizeof(float), cudaMemcpyHostToDevice));
    }
    ~GpuFloats() { cudaFree(data_); }
    GpuFloats(const GpuFloats &)             = delete;
    GpuFloats & operator=(const GpuFloats &) = delete;

    float *            data() const { return data_; }
    std::vector<float> get() const {
        std::vector<float> values(n_);
        GPU(cudaMemcpy(values.data(), data_, n_ * sizeof(float), cudaMemcpyDeviceToHost));
        return values;
    }

private:
    float * data_ = nullptr;
    size_t  n_;
};
