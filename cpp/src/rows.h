// Rows of [n_embd, n_rows] float32 activations, wherever they are: host memory is used in place, a device's is copied.
#pragma once

#include <ggml-backend.h>
#include <ggml.h>

#include <cstring>
#include <vector>

namespace ffnskip {

inline bool on_host(const ggml_tensor * tensor) {
    const ggml_tensor * root = tensor->view_src != nullptr ? tensor->view_src : tensor;
    return ggml_backend_buffer_is_host(root->buffer);
}

inline float * host_row(const ggml_tensor * tensor, int64_t row) {
    return reinterpret_cast<float *>(static_cast<char *>(tensor->data) + row * int64_t(tensor->nb[1]));
}

// The row in host memory: the tensor's own, or `scratch` filled with it.
inline const float * read_row(const ggml_tensor * tensor, int64_t row, std::vector<float> & scratch) {
    if (on_host(tensor)) {
        return host_row(tensor, row);
    }
    scratch.resize(size_t(tensor->ne[0]));
    ggml_backend_tensor_get(tensor, scratch.data(), size_t(row) * tensor->nb[1], size_t(tensor->ne[0]) * sizeof(float));
    return scratch.data();
}

// The token ids of a graph, a vector of int32: in place, or `scratch` filled with them.
inline const int32_t * read_ids(const ggml_tensor * ids, std::vector<int32_t> & scratch) {
    if (on_host(ids)) {
        return static_cast<const int32_t *>(ids->data);
    }
    scratch.resize(size_t(ids->ne[0]));
    ggml_backend_tensor_get(ids, scratch.data(), 0, scratch.size() * sizeof(int32_t));
    return scratch.data();
}

inline void zero_row(ggml_tensor * tensor, int64_t row) {
    const size_t bytes = size_t(tensor->ne[0]) * sizeof(float);
    if (on_host(tensor)) {
        std::memset(host_row(tensor, row), 0, bytes);
    } else {
        ggml_backend_tensor_memset(tensor, 0, size_t(row) * tensor->nb[1], bytes);
    }
}

inline void copy_row(const ggml_tensor * from, ggml_tensor * to, int64_t row, std::vector<float> & scratch) {
    const float * values = read_row(from, row, scratch);
    const size_t  bytes  = size_t(to->ne[0]) * sizeof(float);
    if (on_host(to)) {
        std::memcpy(host_row(to, row), values, bytes);
    } else {
        ggml_backend_tensor_set(to, values, size_t(row) * to->nb[1], bytes);
    }
}

}  // namespace ffnskip
