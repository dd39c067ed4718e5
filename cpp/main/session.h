// A context of the model, made and skipping as the arguments say.
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
    // Why this model can't skip; empty where it can, or nothing asks for it.
    const std::string & why_dense() const { return why_dense_; }

    int32_t n_ctx() const { return decoding_->n_ctx(); }
    int32_t n_used() const { return decoding_->n_used(); }
    bool    has_room(size_t n_tokens) const { return decoding_->has_room(n_tokens); }

    // Decode tokens after those in the context; the output of the last one can then be sampled from.
    void feed_prompt(const Tokens & tokens) { decoding_->prompt(tokens.data(), tokens.size()); }
    void feed_generated(llama_token token);

    // Empties the context. What was counted so far stays.
    void clear() { decoding_->clear(); }

    // Tokens fed as generated, in order: the rows of the trace.
    const Tokens & generated() const { return generated_; }

private:
    struct Free {
        void operator()(llama_context * context) const { llama_free(context); }
    };

    void make_context(const Model & model, const llama_context_params & params);
    // Makes a context that needs no callback, where there can be one.
    bool hook(const Model & model, const llama_context_params & params);
    void begin_skipping(const Model & model, const Arguments & args, llama_context_params params);

    std::optional<ffnskip::Controller>   controller_;  // outlives the context, which calls it back
    std::unique_ptr<llama_context, Free> context_;
    std::optional<ffnskip::Session>      decoding_;
    std::string                          why_dense_;
    Tokens                               generated_;
};

}  // namespace app
