// How a GGUF file begins.
#pragma once

#include <cstring>
#include <filesystem>
#include <fstream>
#include <system_error>

namespace ffnskip {

inline bool is_gguf(const std::filesystem::path & path) {
    std::error_code error;
    if (!std::filesystem::is_regular_file(path, error)) {
        return false;  // and is not read: a pipe would have us wait
    }
    char          magic[4] = {};
    std::ifstream file(path, std::ios::binary);
    return file.read(magic, sizeof(magic)) && std::memcmp(magic, "GGUF", sizeof(magic)) == 0;
}

}  // namespace ffnskip
