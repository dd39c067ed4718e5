// What libllama says: kept, so that a failure can say why, or shown with --verbose.
#pragma once

#include <functional>
#include <string>

namespace app {

void keep_log(bool verbose);

// The first error since the last call, in one line, without the name of the function that logged it: later ones only
// repeat that something failed. Empty if there was none.
std::string take_error();

// What `run` writes to standard error: libllama's grammar parser prints there instead of logging.
std::string stderr_of(const std::function<void()> & run);

}  // namespace app
