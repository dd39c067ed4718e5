// A context of the model that decodes through ffnskip.
#pragma once

#include "arguments.h"
#include "model.h"

#include <ffnskip/ffnskip.h>

#include <memory>
#include <string>

namespace app {

class Session {
public:
    // Room for `n_ctx` tokens at least. Throws BadInput where the context can't be had, or the model can't skip and an
    // option needs it to.
    Session(const Model & model, const Arguments & args, int32_t n_ctx);

    llama_context *       context() const { return context_.get(); }
    ffnskip::Controller & controller() { return controller_; }

    int32_t n_ctx() const { return int32_t(llama_n_ctx(context_.get())); }
    int32_t n_used() const { return n_used_; }
    bool    has_room(size_t n_tokens) const { return n_tokens <= size_t(n_ctx() - n_used_); }
    // Throws BadInput where a prompt does not fit.
    void    require_room(size_t n_tokens) const;

    // Why this model runs dense; empty where it can skip.
    const std::string & why_dense() const { return why_dense_; }

    // The profile that was found beside or in the model and is used; empty where there is none, or skip options are given.
    const std::string & profile() const { return profile_; }

    // Decode tokens after those in the context; the output of the last one can then be sampled from.
    void feed_prompt(const Tokens & tokens);
    void feed_generated(llama_token token);

    // Empties the context. What was counted so far stays.
    void clear();
    // The same, and counts and trace begin anew under `config`.
    void restart(const ffnskip::Config & config);

    // Tokens fed as generated since the beginning or restart(), in order: the rows of the trace.
    const Tokens & generated() const { return generated_; }

private:
    struct Free {
        void operator()(llama_context * context) const { llama_free(context); }
        void operator()(llama_batch * batch) const {
            llama_batch_free(*batch);
            delete batch;
        }
    };

    void set_up_skipping(const Model & model, const Arguments & args);
    void decode(const llama_token * tokens, int32_t n_tokens, bool output);

    ffnskip::Controller                  controller_;  // outlives the context, which calls it back
    std::unique_ptr<llama_context, Free> context_;
    std::unique_ptr<llama_batch, Free>   batch_;
    std::string                          why_dense_;
    std::string                          profile_;
    bool                                 tracing_;
    int32_t                              n_used_ = 0;
    Tokens                               generated_;
};

}  // namespace app
