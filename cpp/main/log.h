// What libllama says: kept, so that a failure can say why, or shown with --verbose.
#pragma once

#include <string>

namespace app {

void keep_log(bool verbose);

// The first error since the last call, in one line, without the name of the function that logged it: later ones only
// repeat that something failed. Empty if there was none.
std::string take_error();

// From here on an assertion that fails in libllama, which ends the process in any case, is one line that begins with
// `what`, and gives this exit status.
void explain_aborts(const std::string & what, int status);

}  // namespace app
