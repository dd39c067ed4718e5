#include "buffers.h"

#ifdef FFNSKIP_CUDA
#include "rows_cuda.h"
#endif

#include <ggml-backend.h>

#include <cstring>
#include <memory>
#include <utility>
#include <vector>

namespace ffnskip {
namespace {

// Also asked of devices that pose as others: ROCm and MUSA are built from ggml's CUDA code, and named so.
std::unique_ptr<RowKernels> make_kernels([[maybe_unused]] ggml_backend_dev_t  device,
                                         [[maybe_unused]] const ggml_tensor * tensor) {
#ifdef FFNSKIP_CUDA
    if (device != nullptr && std::strcmp(ggml_backend_reg_name(ggml_backend_dev_backend_reg(device)), "CUDA") == 0) {
        return make_cuda_kernels(tensor->data);
    }
#endif
    return nullptr;
}

class GgmlBuffers final : public Buffers {
public:
    bool on_host(const ggml_tensor * tensor) const override { return ggml_backend_buffer_is_host(buffer_of(tensor)); }

    void read(const ggml_tensor * from, size_t offset, size_t size, void * to) override {
        ggml_backend_tensor_get(from, to, offset, size);
    }

    void write(ggml_tensor * to, size_t offset, size_t size, const void * from) override {
        ggml_backend_tensor_set(to, from, offset, size);
    }

    RowKernels * kernels(const ggml_tensor * tensor) override {
        const ggml_backend_dev_t device = ggml_backend_buft_get_device(ggml_backend_buffer_get_type(buffer_of(tensor)));
        for (const auto & known : devices_) {
            if (known.first == device) {
                return known.second.get();
            }
        }
        return devices_.emplace_back(device, make_kernels(device, tensor)).second.get();
    }

private:
    // Of the devices met so far; no kernels for those that are none of CUDA.
    std::vector<std::pair<ggml_backend_dev_t, std::unique_ptr<RowKernels>>> devices_;
};

}  // namespace

std::unique_ptr<Buffers> ggml_buffers() {
    return std::make_unique<GgmlBuffers>();
}

}  // namespace ffnskip
