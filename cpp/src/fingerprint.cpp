#include "fingerprint.h"

#include <ggml-backend.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>

namespace ffnskip {
namespace {

// FNV-1a, 64 bits.
void hash(uint64_t & state, const void * data, size_t size) {
    for (size_t i = 0; i < size; ++i) {
        state = (state ^ static_cast<const uint8_t *>(data)[i]) * 0x100000001b3ull;
    }
}

}  // namespace

void add_block_vectors(const ggml_tensor * node, std::vector<const ggml_tensor *> & vectors) {
    for (const ggml_tensor * src : node->src) {
        if (src != nullptr && src->op == GGML_OP_NONE && src->type == GGML_TYPE_F32 && ggml_nrows(src) == 1 &&
            std::strncmp(src->name, "blk.", 4) == 0 && src->buffer != nullptr) {
            vectors.push_back(src);
        }
    }
}

std::string fingerprint(const std::string & head, std::vector<const ggml_tensor *> vectors) {
    // By name: graphs of other versions or devices may visit them in another order, or twice.
    std::sort(vectors.begin(), vectors.end(),
              [](const ggml_tensor * a, const ggml_tensor * b) { return std::strcmp(a->name, b->name) < 0; });
    vectors.erase(std::unique(vectors.begin(), vectors.end()), vectors.end());

    uint64_t             state = 0xcbf29ce484222325ull;
    std::vector<uint8_t> bytes;
    for (const ggml_tensor * vector : vectors) {
        bytes.resize(ggml_nbytes(vector));
        ggml_backend_tensor_get(vector, bytes.data(), 0, bytes.size());
        hash(state, vector->name, std::strlen(vector->name));
        hash(state, bytes.data(), bytes.size());
    }
    char text[24];
    std::snprintf(text, sizeof(text), "-%016llx", static_cast<unsigned long long>(state));
    return head + text;
}

}  // namespace ffnskip
