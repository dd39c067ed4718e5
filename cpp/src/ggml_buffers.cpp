#include "ggml_buffers.h"

#ifdef FFNSKIP_CUDA
#include "rows_cuda.h"
#endif

#include <cstring>

namespace ffnskip {
namespace {

ggml_backend_buffer_t buffer_of(const ggml_tensor * tensor) {
    return (tensor->view_src != nullptr ? tensor->view_src : tensor)->buffer;
}

// Also asked of devices that pose as others: ROCm and MUSA are built from ggml's CUDA code, and named so.
std::unique_ptr<RowKernels> make_kernels(ggml_backend_dev_t device, const ggml_tensor * tensor) {
#ifdef FFNSKIP_CUDA
    if (device != nullptr && std::strcmp(ggml_backend_reg_name(ggml_backend_dev_backend_reg(device)), "CUDA") == 0) {
        return make_cuda_kernels(tensor->data);
    }
#endif
    (void) device;
    (void) tensor;
    return nullptr;
}

}  // namespace

bool GgmlBuffers::on_host(const ggml_tensor * tensor) const {
    return ggml_backend_buffer_is_host(buffer_of(tensor));
}

void GgmlBuffers::read(const ggml_tensor * from, size_t offset, size_t size, void * to) {
    ggml_backend_tensor_get(from, to, offset, size);
}

void GgmlBuffers::write(ggml_tensor * to, size_t offset, size_t size, const void * from) {
    ggml_backend_tensor_set(to, from, offset, size);
}

RowKernels * GgmlBuffers::kernels(const ggml_tensor * tensor) {
    const ggml_backend_dev_t device = ggml_backend_buft_get_device(ggml_backend_buffer_get_type(buffer_of(tensor)));
    for (const auto & known : devices_) {
        if (known.first == device) {
            return known.second.get();
        }
    }
    devices_.emplace_back(device, make_kernels(device, tensor));
    return devices_.back().second.get();
}

}  // namespace ffnskip
