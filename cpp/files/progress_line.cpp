#include "progress_line.h"

#include <unistd.h>

#include <cstdio>

namespace ffnskip {

bool ProgressLine::operator()(double done) {
    const int percent = int(100.0 * done);
    if (std::chrono::steady_clock::now() - start_ < std::chrono::seconds(1) || percent == told_) {
        return true;
    }
    if (isatty(STDERR_FILENO) != 0) {
        std::fprintf(stderr, "\r%s: %3d %%%s", what_.c_str(), percent, percent == 100 ? "\n" : "");
    } else if (told_ < 0) {
        std::fprintf(stderr, "%s\n", what_.c_str());
    }
    told_ = percent;
    return true;
}

}  // namespace ffnskip
