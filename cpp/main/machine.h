// What the machine has that libllama does not ask about.
#pragma once

#include <llama.h>

#include <cstdint>
#include <string>

namespace app {

// Cores this process may use, those of one core that run two threads counted once.
int32_t physical_cores();

// libllama writes to all of a context's cache: what the machine does not have would end the process, not the allocation.
// Throws BadInput.
void require_memory(const llama_model * model, const llama_context_params & params);

// Path of the demo model that comes with the program. Throws BadInput if it is not where it should be.
std::string demo_model();

}  // namespace app
