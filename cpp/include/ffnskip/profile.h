// A skip profile: settings found for one model, in a small GGUF file beside it (model.ffnskip.gguf).
//
// Metadata only: ffnskip.model (fingerprint), ffnskip.policy, ffnskip.sim_threshold, ffnskip.cold_s, ffnskip.cold_e,
// ffnskip.warm_up_index, ffnskip.max_skip, and for policy "fixed" ffnskip.layers. Other keys under "ffnskip." are what
// was learnt on the way and are left alone here.
#pragma once

#include "ffnskip/config.h"

#include <string>

namespace ffnskip {

struct Profile {
    std::string model;   // Controller::fingerprint() of the model it was made for
    Config      config;
};

// Throws std::invalid_argument: the file, and why it is no profile.
Profile read_profile(const std::string & path);

}  // namespace ffnskip
