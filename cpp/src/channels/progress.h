// How far long work has come.
#pragma once

#include "ffnskip/errors.h"

#include <functional>

namespace ffnskip {

// Told the share that is done, by the thread that the work was asked from; false stops it. May be empty.
using Progress = std::function<bool(double done)>;

// Throws Interrupted where it is to stop.
inline void tell(const Progress & progress, double done) {
    if (progress && !progress(done)) {
        throw Interrupted("storing weights by channel was stopped");
    }
}

}  // namespace ffnskip
