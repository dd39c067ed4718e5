// How a GGUF file begins.
#pragma once

#include <cstring>
#include <filesystem>
#include <fstream>

namespace ffnskip {

inline bool is_gguf(const std::filesystem::path & path) {
    char          magic[4] = {};
    std::ifstream file(path, std::ios::binary);
    return file.read(magic, sizeof(magic)) && std::memcmp(magic, "GGUF", sizeof(magic)) == 0;
}

}  // namespace ffnskip
