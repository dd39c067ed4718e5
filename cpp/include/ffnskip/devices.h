// Devices on other machines: llama.cpp's RPC servers.
#pragma once

#include "ffnskip/export.h"

#include <string>
#include <vector>

namespace ffnskip FFNSKIP_API {

// Devices of the servers, "HOST:PORT" each, become devices of this process: models that are loaded from then on put layers
// there as they put them on GPUs. One that was added before is there once. Throws std::invalid_argument where an endpoint is
// none, std::runtime_error where nobody listens, and Unsupported where llama.cpp was built without RPC (-DGGML_RPC=on). What
// listens there must be an RPC server: ggml ends the process where it is none.
void add_rpc_servers(const std::vector<std::string> & endpoints);

}  // namespace ffnskip FFNSKIP_API
