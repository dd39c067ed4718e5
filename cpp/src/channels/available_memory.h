// How much memory this process may still take.
#pragma once

#include <cstdint>
#include <string>

namespace ffnskip {

constexpr uint64_t k_memory_not_known = UINT64_MAX;

// Bytes that can be taken without others having to give some up but the system's cache of files. The least of what the
// machine has and what limits on groups of processes, a container's say, leave. `root`: where the system's files are found,
// for tests. k_memory_not_known where the system does not tell.
uint64_t available_memory(const std::string & root = "");

}  // namespace ffnskip
