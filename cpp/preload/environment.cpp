#include "environment.h"

#include <cstdio>
#include <cstdlib>

namespace ffnskip {

Environment read_environment() {
    Environment all;
    if (const char * path = std::getenv("FFNSKIP_PROFILE")) {
        all.profile = read_profile(path);
        all.config  = all.profile->config;
    }
    for (const Option & option : options()) {
        if (const char * value = std::getenv(environment_name(option.name).c_str())) {
            set_option(all.config, option.name, value);
            all.any_option = true;
        }
    }
    if (const char * value = std::getenv("FFNSKIP_REUSE")) {
        all.reuse = reuse_from_name(value);
    }
    all.draft_only = std::getenv("FFNSKIP_DRAFT_ONLY") != nullptr;
    all.config.validate();
    if (all.profile) {
        all.profile->config = all.config;
    }
    return all;
}

void say(const std::string & message) {
    std::fprintf(stderr, "ffnskip: %s\n", message.c_str());
}

}  // namespace ffnskip
