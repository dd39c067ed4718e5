// The memory tensors lie in, as far as the core reads and writes them: the seam between it and ggml's devices.
#pragma once

#include "row_kernels.h"

#include <ggml-backend.h>
#include <ggml.h>

#include <cstddef>
#include <memory>
#include <vector>

namespace ffnskip {

class Buffers {
public:
    virtual ~Buffers() = default;

    // True if the host may use tensor->data. If not, it is no address, or one of a device.
    virtual bool on_host(const ggml_tensor * tensor) const = 0;

    // Copies to and from the host. Where the tensor is not on it, each call takes a while, and is waited for.
    virtual void read(const ggml_tensor * from, size_t offset, size_t size, void * to)  = 0;
    virtual void write(ggml_tensor * to, size_t offset, size_t size, const void * from) = 0;

    // The kernels of the device whose memory the tensor is in, one object per device; null where there are none.
    virtual RowKernels * kernels(const ggml_tensor * tensor) = 0;
};

// Those of ggml's tensors, by ggml's public interface alone: each tensor is told apart by the buffer it is in, so that
// one graph may be spread over the host and any number of devices.
std::unique_ptr<Buffers> ggml_buffers();

// The memory that a tensor is in, or that of the tensor it is a view of; null where it has none yet.
inline ggml_backend_buffer_t buffer_of(const ggml_tensor * tensor) {
    return (tensor->view_src != nullptr ? tensor->view_src : tensor)->buffer;
}

// The token ids of a graph, a vector of int32: in place, or `scratch` filled with them.
inline const int32_t * read_ids(Buffers & buffers, const ggml_tensor * ids, std::vector<int32_t> & scratch) {
    if (buffers.on_host(ids)) {
        return static_cast<const int32_t *>(ids->data);
    }
    scratch.resize(size_t(ids->ne[0]));
    buffers.read(ids, 0, scratch.size() * sizeof(int32_t), scratch.data());
    return scratch.data();
}

}  // namespace ffnskip
