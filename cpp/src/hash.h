// A hash that is the same on all machines.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ffnskip {

// FNV-1a, 64 bits.
constexpr uint64_t k_hash_of_nothing = 0xcbf29ce484222325ull;

inline void add_to_hash(uint64_t & state, const void * data, size_t size) {
    for (size_t i = 0; i < size; ++i) {
        state = (state ^ static_cast<const uint8_t *>(data)[i]) * 0x100000001b3ull;
    }
}

}  // namespace ffnskip
