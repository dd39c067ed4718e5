// A skip profile: settings found for one model, as GGUF metadata, beside the model (model.ffnskip.gguf) or in its file.
//
// The keys: ffnskip.model (fingerprint), ffnskip.policy (or a name of older versions), ffnskip.warm_up_index, and
// ffnskip.layers where some are always skipped. Of policy channels ffnskip.channel_thresholds, or else ffnskip.tensors and
// ffnskip.skip_ratio; ffnskip.cold_s and ffnskip.cold_e where given. Of ffn_skip ffnskip.max_skip and, unless no layer but
// those of ffnskip.layers is skipped (max_skip 0), ffnskip.cold_s, ffnskip.cold_e, ffnskip.check_stride and
// ffnskip.check_interval (1 where there is none), and ffnskip.sim_threshold or ffnskip.layer_thresholds. Of skip_decode
// ffnskip.cold_s, ffnskip.cold_e, ffnskip.min_layers and ffnskip.budget_decay. Other keys under
// "ffnskip." are what was learnt on the way and are left alone here.
#pragma once

#include "ffnskip/config.h"
#include "ffnskip/export.h"

#include <llama.h>

#include <optional>
#include <string>

namespace ffnskip FFNSKIP_API {

struct Profile {
    std::string path;   // the file it was read from
    std::string model;  // Controller::fingerprint() of the model it was made for
    Config      config;
};

// Throws std::invalid_argument: the file, and why it is no profile.
Profile read_profile(const std::string & path);

// Where the profile of a model lies: "model.ffnskip.gguf" of "model.gguf", and of "model-00001-of-00003.gguf".
std::string profile_path(const std::string & model_path);

// The profile of a model that was loaded from `model_path`: the one beside it, else the one in it, else none.
// Throws as read_profile() does.
std::optional<Profile> find_profile(const llama_model * model, const std::string & model_path);

}  // namespace ffnskip FFNSKIP_API
