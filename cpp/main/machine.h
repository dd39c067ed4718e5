// What the machine has that libllama does not ask about.
#pragma once

#include <cstdint>
#include <string>

namespace app {

// Cores this process may use, those of one core that run two threads counted once.
int32_t physical_cores();

// Memory that can still be had, on all devices together, in bytes.
uint64_t free_memory();

// Path of the demo model that comes with the program. Throws BadInput if it is not where it should be.
std::string demo_model();

}  // namespace app
