// A line on standard error about work that takes a while.
#pragma once

#include <chrono>
#include <string>
#include <utility>

namespace ffnskip {

// Says nothing in the first second. Then the line is written anew on a terminal as the work goes on; elsewhere it is
// written once.
class ProgressLine {
public:
    explicit ProgressLine(std::string what) : what_(std::move(what)) {}

    // The part that is done, 0 to 1; true, so that the work goes on.
    bool operator()(double done);

private:
    std::string                           what_;
    std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
    int                                   told_  = -1;  // percent
};

}  // namespace ffnskip
