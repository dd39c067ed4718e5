// The skip options as programs spell them: `--sim-threshold 0.95` on a command line, FFNSKIP_SIM_THRESHOLD=0.95 in the
// environment of `ffnskip run`. One table, so that all of them mean the same everywhere.
#pragma once

#include "ffnskip/config.h"
#include "ffnskip/export.h"

#include <string>
#include <vector>

namespace ffnskip FFNSKIP_API {

struct Option {
    const char * name;   // "sim-threshold"
    const char * value;  // placeholder of its value: "T"; null for a switch, which takes none
    const char * help;   // one line
};

// Every option, in the order help texts show them.
const std::vector<Option> & options();

// Sets what option `name` (without dashes) stands for; `value` is not looked at for a switch. Options count in the order they
// are given: "policy" and "no-skip" leave behind what was said to the policy before (layers, thresholds, region, and the
// max_skip that "skip-layers" implied).
// Throws std::invalid_argument: an unknown name, or the value and what would be right.
void set_option(Config & config, const std::string & name, const std::string & value);

// "FFNSKIP_SIM_THRESHOLD" of "sim-threshold".
std::string environment_name(const std::string & option);

}  // namespace ffnskip FFNSKIP_API
