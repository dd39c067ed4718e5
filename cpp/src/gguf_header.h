// The header of a GGUF file: what it says of itself, and which tensors it has.
#pragma once

#include <ggml.h>
#include <gguf.h>

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <stdexcept>
#include <string>
#include <system_error>

namespace ffnskip {

struct FreeGguf {
    void operator()(gguf_context * header) const { gguf_free(header); }
    void operator()(ggml_context * shapes) const { ggml_free(shapes); }
};

struct GgufHeader {
    std::unique_ptr<gguf_context, FreeGguf> keys;
    std::unique_ptr<ggml_context, FreeGguf> shapes;  // its tensors, without their data
    uint64_t                                file_bytes;
};

// Throws std::invalid_argument, the reason alone. What ggml would complain of in the log is said before it is asked.
inline GgufHeader read_gguf_header(const std::string & path) {
    std::error_code error;
    if (!std::filesystem::is_regular_file(path, error)) {  // a pipe is none: opening one waits for who writes into it
        throw std::invalid_argument("can't be read: " + (error ? error.message() : "it is no file"));
    }
    std::ifstream file(path, std::ios::binary);
    if (!file) {
        throw std::invalid_argument("can't be read");
    }
    char     magic[4] = {};
    uint32_t version  = 0;
    if (!file.read(magic, sizeof(magic)) || std::memcmp(magic, GGUF_MAGIC, sizeof(magic)) != 0) {
        throw std::invalid_argument("is no GGUF file");
    }
    file.read(reinterpret_cast<char *>(&version), sizeof(version));
    if ((version & 0xffff) == 0 && version != 0) {
        throw std::invalid_argument("has its numbers in the other byte order (big-endian); convert the model anew");
    }
    ggml_context * shapes = nullptr;
    GgufHeader     header;
    header.keys.reset(gguf_init_from_file(path.c_str(), { true, &shapes }));
    header.shapes.reset(shapes);
    header.file_bytes = std::filesystem::file_size(path, error);
    if (!header.keys || error) {
        throw std::invalid_argument("is truncated or damaged");
    }
    const uint64_t begin = gguf_get_data_offset(header.keys.get());
    for (int64_t i = 0; i < gguf_get_n_tensors(header.keys.get()); ++i) {
        const char *        name   = gguf_get_tensor_name(header.keys.get(), i);
        const ggml_tensor * tensor = ggml_get_tensor(header.shapes.get(), name);
        if (begin + gguf_get_tensor_offset(header.keys.get(), i) + ggml_nbytes(tensor) > header.file_bytes) {
            throw std::invalid_argument("is truncated: it ends before the data of " + std::string(name));
        }
    }
    return header;
}

}  // namespace ffnskip
