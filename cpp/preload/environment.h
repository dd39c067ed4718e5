// What `ffnskip run` says to the overlay: skip options in the environment, FFNSKIP_PROFILE, FFNSKIP_REUSE and
// FFNSKIP_DRAFT_ONLY.
#pragma once

#include "ffnskip/ffnskip.h"

#include <optional>
#include <string>

namespace ffnskip {

struct Environment {
    Config                 config;
    bool                   any_option = false;  // a skip option is given
    std::optional<Profile> profile;             // given; `config` is its, options applied
    Reuse                  reuse      = Reuse::all;
    bool                   draft_only = false;  // contexts of draft models alone skip
};

// Throws std::invalid_argument: what can't be used, and what would be right.
Environment read_environment();

// A line on standard error.
void say(const std::string & message);

}  // namespace ffnskip
