// The memory tensors lie in, as far as the core reads and writes them: the seam between it and ggml's devices.
#pragma once

#include "row_kernels.h"

#include <ggml.h>

#include <cstddef>
#include <vector>

namespace ffnskip {

class Memory {
public:
    virtual ~Memory() = default;

    // True if the host may use tensor->data. If not, it is no address, or one of a device.
    virtual bool on_host(const ggml_tensor * tensor) const = 0;

    // For tensors that are not on the host. Each call is a copy to or from a device, and waits for it.
    virtual void read(const ggml_tensor * from, size_t offset, size_t size, void * to)        = 0;
    virtual void write(ggml_tensor * to, size_t offset, size_t size, const void * from)       = 0;

    // The kernels of the device whose memory the tensor is in, one object per device; null where there are none.
    virtual RowKernels * kernels(const ggml_tensor * tensor) = 0;
};

// The token ids of a graph, a vector of int32: in place, or `scratch` filled with them.
inline const int32_t * read_ids(Memory & memory, const ggml_tensor * ids, std::vector<int32_t> & scratch) {
    if (memory.on_host(ids)) {
        return static_cast<const int32_t *>(ids->data);
    }
    scratch.resize(size_t(ids->ne[0]));
    memory.read(ids, 0, scratch.size() * sizeof(int32_t), scratch.data());
    return scratch.data();
}

}  // namespace ffnskip
