// The C interface: translation only. No exception leaves it.
#include "ffnskip.h"

#include "ffnskip/ffnskip.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

using namespace ffnskip;

struct ffnskip_controller {
    Controller             controller;
    std::optional<Profile> settings;        // what was asked for; without a path where it came from options alone
    bool                   probed = false;  // and there is something to skip
    std::vector<uint64_t>  skipped_per_layer;
    std::string            error;
};

namespace {

thread_local std::string t_error;  // of calls without a controller

int32_t fail(ffnskip_controller * skip, int32_t status, const char * what) noexcept {
    try {
        (skip != nullptr ? skip->error : t_error) = what;
    } catch (const std::bad_alloc &) {
        // The status has to do.
    }
    return status;
}

// The status of what `body` does with a controller.
template <typename Body> int32_t guarded(ffnskip_controller * skip, Body body) noexcept {
    try {
        if (skip == nullptr) {
            throw std::invalid_argument("the controller is null");
        }
        return body(*skip);
    } catch (const Unsupported & error) {
        return fail(skip, FFNSKIP_ERROR_UNSUPPORTED, error.what());
    } catch (const ProfileMismatch & error) {
        return fail(skip, FFNSKIP_ERROR_PROFILE, error.what());
    } catch (const std::invalid_argument & error) {
        return fail(skip, FFNSKIP_ERROR_ARGUMENT, error.what());
    } catch (const std::bad_alloc &) {
        return fail(skip, FFNSKIP_ERROR_FAILED, "out of memory");
    } catch (const std::exception & error) {
        return fail(skip, FFNSKIP_ERROR_FAILED, error.what());
    } catch (...) {
        return fail(skip, FFNSKIP_ERROR_FAILED, "an error that does not say what it is");
    }
}

void require(const void * argument, const char * name) {
    if (argument == nullptr) {
        throw std::invalid_argument(std::string(name) + " is null");
    }
}

void require_sequence(llama_seq_id seq, const char * name) {
    const auto most = llama_seq_id(llama_max_parallel_sequences()) - 1;
    if (seq < 0 || seq > most) {
        throw std::invalid_argument(std::string(name) + ": " + std::to_string(seq) + " is no sequence; they are 0 to " +
                                    std::to_string(most));
    }
}

void apply(Controller & controller, const Profile & settings) {
    if (settings.path.empty()) {
        controller.set_config(settings.config);
    } else {
        controller.set_profile(settings);
    }
}

// At once where there is a model to take them for. What does not fit leaves all as it was.
int32_t take_over(ffnskip_controller & skip, Profile settings) {
    if (skip.probed) {
        apply(skip.controller, settings);
    }
    skip.settings = std::move(settings);
    return FFNSKIP_OK;
}

void require_batch(const llama_context * ctx, const llama_batch & batch) {
    require(ctx, "ctx");
    if (batch.n_tokens > 0 && (batch.token == nullptr) == (batch.embd == nullptr)) {
        throw std::invalid_argument("batch: either token or embd must be given, and the other be null");
    }
    if (batch.n_tokens > int32_t(llama_n_batch(ctx))) {  // llama_decode would end the process
        throw std::invalid_argument("batch: " + std::to_string(batch.n_tokens) +
                                    " tokens, more than n_batch = " + std::to_string(llama_n_batch(ctx)));
    }
}

int32_t passed_on(ffnskip_controller & skip, int32_t status) {
    if (status != 0) {
        skip.error = decode_status(status);
    }
    return status;
}

}  // namespace

const char * ffnskip_version(void) {
    return version();
}

const char * ffnskip_llama_version(void) {
    return FFNSKIP_LLAMA_VERSION " (ggml " FFNSKIP_GGML_VERSION ")";
}

ffnskip_controller * ffnskip_init(void) {
    try {
        return new ffnskip_controller;
    } catch (const std::exception & error) {
        fail(nullptr, FFNSKIP_ERROR_FAILED, error.what());
        return nullptr;
    }
}

void ffnskip_free(ffnskip_controller * skip) {
    delete skip;
}

const char * ffnskip_last_error(const ffnskip_controller * skip) {
    return skip != nullptr ? skip->error.c_str() : t_error.c_str();
}

int32_t ffnskip_attach(ffnskip_controller * skip, llama_context_params * params) {
    return guarded(skip, [=](ffnskip_controller & self) {
        require(params, "params");
        self.controller.attach(*params);
        return FFNSKIP_OK;
    });
}

int32_t ffnskip_set_option(ffnskip_controller * skip, const char * name, const char * value) {
    return guarded(skip, [=](ffnskip_controller & self) -> int32_t {
        require(name, "name");
        const auto & all       = options();
        const bool   is_switch = std::any_of(all.begin(), all.end(), [=](const Option & option) {
            return option.value == nullptr && std::strcmp(option.name, name) == 0;
        });
        if (!is_switch) {
            require(value, name);
        }
        if (std::strcmp(name, "reuse") == 0) {
            self.controller.set_reuse(reuse_from_name(value));
            return FFNSKIP_OK;
        }
        Profile settings = self.settings.value_or(Profile());
        set_option(settings.config, name, is_switch ? "" : value);
        return take_over(self, std::move(settings));
    });
}

int32_t ffnskip_load_profile(ffnskip_controller * skip, const char * path) {
    return guarded(skip, [=](ffnskip_controller & self) {
        require(path, "path");
        return take_over(self, read_profile(path));
    });
}

int32_t ffnskip_find_profile(ffnskip_controller * skip, const llama_model * model, const char * model_path) {
    return guarded(skip, [=](ffnskip_controller & self) -> int32_t {
        require(model, "model");
        require(model_path, "model_path");
        self.controller.set_weights_source({ model_path, 0, nullptr });
        std::optional<Profile> found = find_profile(model, model_path);
        return found ? take_over(self, std::move(*found)) : FFNSKIP_NO_PROFILE;
    });
}

int32_t ffnskip_set_model_path(ffnskip_controller * skip, const char * model_path) {
    return guarded(skip, [=](ffnskip_controller & self) {
        require(model_path, "model_path");
        self.controller.set_weights_source({ model_path, 0, nullptr });
        return FFNSKIP_OK;
    });
}

int32_t ffnskip_probe(ffnskip_controller * skip, llama_context * ctx) {
    return guarded(skip, [=](ffnskip_controller & self) {
        require(ctx, "ctx");
        self.probed = false;
        self.controller.probe(ctx);
        self.probed = true;
        try {
            if (self.settings) {
                apply(self.controller, *self.settings);
            }
        } catch (const ProfileMismatch &) {  // no option makes it this model's
            self.settings.reset();
            throw;
        }
        return FFNSKIP_OK;
    });
}

int32_t ffnskip_decode(ffnskip_controller * skip, llama_context * ctx, llama_batch batch) {
    return guarded(skip, [&](ffnskip_controller & self) {
        require_batch(ctx, batch);
        return passed_on(self, self.controller.decode(ctx, batch));
    });
}

int32_t ffnskip_decode_rows(ffnskip_controller * skip, llama_context * ctx, llama_batch batch, const uint8_t * kinds) {
    static_assert(sizeof(RowKind) == 1 && int(RowKind::prompt) == FFNSKIP_ROW_PROMPT &&
                  int(RowKind::warm_up) == FFNSKIP_ROW_WARM_UP && int(RowKind::skippable) == FFNSKIP_ROW_SKIPPABLE);
    return guarded(skip, [&](ffnskip_controller & self) {
        require_batch(ctx, batch);
        require(kinds, "kinds");
        for (int32_t i = 0; i < batch.n_tokens; ++i) {
            if (kinds[i] > FFNSKIP_ROW_SKIPPABLE) {
                throw std::invalid_argument("kinds[" + std::to_string(i) + "] is " + std::to_string(kinds[i]) +
                                            ", no ffnskip_row_kind");
            }
        }
        return passed_on(self, self.controller.decode(ctx, batch, reinterpret_cast<const RowKind *>(kinds)));
    });
}

int32_t ffnskip_seq_cp(ffnskip_controller * skip, llama_seq_id from, llama_seq_id to) {
    return guarded(skip, [=](ffnskip_controller & self) {
        require_sequence(from, "from");
        require_sequence(to, "to");
        self.controller.copied(from, to);
        return FFNSKIP_OK;
    });
}

int32_t ffnskip_seq_add(ffnskip_controller * skip, llama_seq_id seq, llama_pos p0, llama_pos p1, llama_pos delta) {
    return guarded(skip, [=](ffnskip_controller & self) {
        self.controller.shifted(seq, p0, p1, delta);
        return FFNSKIP_OK;
    });
}

int32_t ffnskip_seq_reset(ffnskip_controller * skip, llama_seq_id seq) {
    return guarded(skip, [=](ffnskip_controller & self) {
        self.controller.replaced(seq);
        return FFNSKIP_OK;
    });
}

int32_t ffnskip_get_stats(ffnskip_controller * skip, ffnskip_stats * stats) {
    return guarded(skip, [=](ffnskip_controller & self) {
        require(stats, "stats");
        if (stats->size < sizeof(stats->size)) {
            throw std::invalid_argument("stats->size is " + std::to_string(stats->size) +
                                        "; set it to sizeof(struct ffnskip_stats)");
        }
        const Stats   counted    = self.controller.stats();
        ffnskip_stats all        = {};
        self.skipped_per_layer   = counted.skipped_per_layer;
        all.size                 = std::min(stats->size, sizeof(all));
        all.tokens               = counted.tokens;
        all.ffn_total            = counted.ffn_total;
        all.ffn_skipped          = counted.ffn_skipped;
        all.checks               = counted.checks;
        all.tokens_never_tripped = counted.tokens_never_tripped;
        all.ffn_bytes_not_read   = counted.ffn_bytes_not_read;
        all.n_layer              = self.skipped_per_layer.size();
        all.skipped_per_layer    = self.skipped_per_layer.data();
        all.bytes_total          = counted.bytes_total;
        all.bytes_left_out       = counted.bytes_left_out;
        std::memcpy(stats, &all, all.size);
        return FFNSKIP_OK;
    });
}

int32_t ffnskip_reset_stats(ffnskip_controller * skip) {
    return guarded(skip, [](ffnskip_controller & self) {
        self.controller.reset_stats();
        return FFNSKIP_OK;
    });
}
