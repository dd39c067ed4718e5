// The buffers of ggml's tensors, told apart by ggml's public interface alone: each tensor by the buffer it is in, so that
// one graph may be spread over the host and any number of devices.
#pragma once

#include "buffers.h"

#include <ggml-backend.h>

#include <memory>
#include <utility>
#include <vector>

namespace ffnskip {

class GgmlBuffers final : public Buffers {
public:
    bool         on_host(const ggml_tensor * tensor) const override;
    void         read(const ggml_tensor * from, size_t offset, size_t size, void * to) override;
    void         write(ggml_tensor * to, size_t offset, size_t size, const void * from) override;
    RowKernels * kernels(const ggml_tensor * tensor) override;

private:
    // Of the devices met so far; no kernels for those that are none of CUDA.
    std::vector<std::pair<ggml_backend_dev_t, std::unique_ptr<RowKernels>>> devices_;
};

}  // namespace ffnskip
