#include "weight_rows.h"

#include "buffers.h"
#include "ffnskip/errors.h"
#include "hash.h"

#include <ggml-backend.h>

#include <algorithm>
#include <cstring>
#include <utility>

namespace ffnskip {
namespace {

// Repacked weights are in the host's memory too, but not in the file's order: their buffers say that they are none of the
// host's.
bool in_order_in_memory(const ggml_tensor * weight) {
    return ggml_backend_buffer_is_host(buffer_of(weight)) && ggml_is_contiguous(weight);
}

}  // namespace

uint64_t sample_rows(int64_t n_rows, size_t row_bytes, const ChannelSource & source) {
    constexpr int64_t    k_rows = 8;
    constexpr size_t     k_most = 512;  // bytes of a row
    uint64_t             state  = k_hash_of_nothing;
    std::vector<uint8_t> row(row_bytes);
    for (int64_t i = 0; i < k_rows; ++i) {
        source((n_rows - 1) * i / (k_rows - 1), 1, row.data());
        add_to_hash(state, row.data(), std::min(row.size(), k_most));
    }
    return state;
}

WeightRows::WeightRows(std::string model_path, std::vector<const ggml_tensor *> vectors)
    : path_(std::move(model_path)), vectors_(std::move(vectors)) {}

ChannelSource WeightRows::of(const ggml_tensor * weight) {
    const size_t row_bytes = ggml_row_size(weight->type, weight->ne[0]);
    if (in_order_in_memory(weight)) {
        const auto * data = static_cast<const uint8_t *>(weight->data);
        return [=](int64_t first, int64_t n, uint8_t * to) {
            std::memcpy(to, data + size_t(first) * row_bytes, size_t(n) * row_bytes);
        };
    }
    if (path_.empty()) {
        throw Unsupported(std::string(weight->name) + " is kept in an order of its own (" +
                          ggml_backend_buffer_name(buffer_of(weight)) +
                          "), and the model's file, where it could be read, is not known: give its path, or load the "
                          "model with use_extra_bufts = false and n_gpu_layers = 0");
    }
    const ModelFile &         model  = file();
    const ModelFile::Tensor & tensor = model.require(weight);
    return [&, row_bytes](int64_t first, int64_t n, uint8_t * to) {
        model.read(tensor, uint64_t(first) * row_bytes, size_t(n) * row_bytes, to);
    };
}

const ModelFile & WeightRows::file() {
    if (file_ == nullptr) {
        auto opened = std::make_unique<ModelFile>(path_);
        for (const ggml_tensor * vector : vectors_) {
            opened->require_same(vector);
        }
        file_ = std::move(opened);
    }
    return *file_;
}

}  // namespace ffnskip
