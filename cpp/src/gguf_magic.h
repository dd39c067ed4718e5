// How a GGUF file begins.
#pragma once

#include <cstring>
#include <filesystem>
#include <fstream>
#include <system_error>

namespace ffnskip {

// A pipe is none: opening one waits for whoever writes into it.
inline bool is_gguf(const std::filesystem::path & path) {
    std::error_code none;
    if (!std::filesystem::is_regular_file(path, none)) {
        return false;
    }
    char          magic[4] = {};
    std::ifstream file(path, std::ios::binary);
    return file.read(magic, sizeof(magic)) && std::memcmp(magic, "GGUF", sizeof(magic)) == 0;
}

}  // namespace ffnskip
