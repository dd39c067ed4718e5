// A context of the model that decodes through ffnskip.
#pragma once

#include "arguments.h"
#include "model.h"

#include <ffnskip/ffnskip.h>

#include <memory>
#include <optional>
#include <string>

namespace app {

class Session {
public:
    // Room for `n_ctx` tokens at least. Dense, or as `args` say; without a callback where nothing is to be skipped or
    // looked at. Throws BadInput where the context can't be had, or the model can't skip and an option needs it to.
    Session(const Model & model, const Arguments & args, int32_t n_ctx, bool dense);

    llama_context * context() const { return context_.get(); }
    // Null where the session runs without.
    ffnskip::Controller * controller() { return controller_ ? &*controller_ : nullptr; }

    int32_t n_ctx() const { return int32_t(llama_n_ctx(context_.get())); }
    int32_t n_used() const { return n_used_; }
    bool    has_room(size_t n_tokens) const { return n_tokens <= size_t(n_ctx() - n_used_); }
    // Throws BadInput where a prompt does not fit.
    void    require_room(size_t n_tokens) const;

    // Why this model can't skip; empty where it can, or nothing asks for it.
    const std::string & why_dense() const { return why_dense_; }

    // Decode tokens after those in the context; the output of the last one can then be sampled from.
    void feed_prompt(const Tokens & tokens);
    void feed_generated(llama_token token);

    // Empties the context. What was counted so far stays.
    void clear();

    // Tokens fed as generated, in order: the rows of the trace.
    const Tokens & generated() const { return generated_; }

private:
    struct Free {
        void operator()(llama_context * context) const { llama_free(context); }
        void operator()(llama_batch * batch) const {
            llama_batch_free(*batch);
            delete batch;
        }
    };

    void make_context(const Model & model, llama_context_params params);
    void begin_skipping(const Model & model, const Arguments & args, llama_context_params params);
    void decode(const llama_token * tokens, int32_t n_tokens, bool output, ffnskip::Fed fed);

    std::optional<ffnskip::Controller>   controller_;  // outlives the context, which calls it back
    std::unique_ptr<llama_context, Free> context_;
    std::unique_ptr<llama_batch, Free>   batch_;
    std::string                          why_dense_;
    int32_t                              n_used_ = 0;
    Tokens                               generated_;
};

}  // namespace app
