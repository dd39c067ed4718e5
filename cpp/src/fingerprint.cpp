#include "fingerprint.h"

#include <ggml-backend.h>

#include <algorithm>
#include <cstdio>
#include <cstring>

namespace ffnskip {
namespace {

bool is_block_vector(const ggml_tensor * tensor) {
    return tensor->op == GGML_OP_NONE && tensor->type == GGML_TYPE_F32 && ggml_nrows(tensor) == 1 &&
           std::strncmp(tensor->name, "blk.", 4) == 0 && tensor->buffer != nullptr;
}

// FNV-1a, 64 bits.
void hash(uint64_t & state, const void * data, size_t size) {
    for (size_t i = 0; i < size; ++i) {
        state = (state ^ static_cast<const uint8_t *>(data)[i]) * 0x100000001b3ull;
    }
}

}  // namespace

void Fingerprint::begin(const std::string & arch, int n_layer, int n_embd) {
    head_ = arch + "-" + std::to_string(n_layer) + "x" + std::to_string(n_embd);
    text_.clear();
    vectors_.clear();
}

void Fingerprint::add(const ggml_tensor * node) {
    for (const ggml_tensor * src : node->src) {
        if (src != nullptr && is_block_vector(src)) {
            vectors_.push_back(src);
        }
    }
}

void Fingerprint::finish() {
    // By name: graphs of other versions or devices may visit them in another order, or twice.
    std::sort(vectors_.begin(), vectors_.end(),
              [](const ggml_tensor * a, const ggml_tensor * b) { return std::strcmp(a->name, b->name) < 0; });
    vectors_.erase(std::unique(vectors_.begin(), vectors_.end()), vectors_.end());

    uint64_t             state = 0xcbf29ce484222325ull;
    std::vector<uint8_t> bytes;
    for (const ggml_tensor * vector : vectors_) {
        bytes.resize(ggml_nbytes(vector));
        ggml_backend_tensor_get(vector, bytes.data(), 0, bytes.size());
        hash(state, vector->name, std::strlen(vector->name));
        hash(state, bytes.data(), bytes.size());
    }
    char text[24];
    std::snprintf(text, sizeof(text), "-%016llx", static_cast<unsigned long long>(state));
    text_ = head_ + text;
    vectors_.clear();
}

}  // namespace ffnskip
