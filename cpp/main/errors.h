// How ffnskip-main ends before its time. main() turns each into an exit status.
#pragma once

#include <stdexcept>

namespace app {

// What the user gave can't be used; the message names the value and what would be right. Exit status 2.
struct BadInput : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Nobody reads standard output any more, as after `| head -1`. Exit status 141, without a word.
struct ReaderGone {};

}  // namespace app
