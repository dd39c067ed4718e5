// Skips FFN blocks in an unmodified llama.cpp context.
//
//     ffnskip::Controller controller;
//     llama_context_params params = llama_context_default_params();
//     controller.attach(params);                               // before the context is made
//     llama_context * ctx = llama_init_from_model(model, params);
//     controller.probe(ctx);                                   // learns where the FFN blocks are
//     controller.set_config({});                               // FFN-SkipLLM with the paper's values
//     controller.decode(ctx, prompt_batch, nullptr);           // in place of llama_decode: full compute
//     const ffnskip::RowKind kind = controller.row_kind(i);    // i = 0, 1, ...: the i-th generated token
//     controller.decode(ctx, token_batch, &kind);
//
// One controller serves one context, must outlive it, and is used by one thread at a time (the one that decodes).
// The way it works: docs/how-it-works.md.
#pragma once

#include "ffnskip/config.h"
#include "ffnskip/stats.h"

#include <llama.h>

#include <memory>
#include <stdexcept>

namespace ffnskip {

// The model or context has no FFN block that can be skipped, or one this version does not understand.
struct Unsupported : std::runtime_error {
    using std::runtime_error::runtime_error;
};

enum class RowKind : uint8_t {
    prompt,     // runs in full, not counted
    warm_up,    // a generated token that runs in full (Algorithm 1's warm_up_index), counted
    skippable,  // a generated token that may skip, counted
};

class Controller {
public:
    Controller();
    ~Controller();
    Controller(const Controller &)             = delete;
    Controller & operator=(const Controller &) = delete;

    // Sets cb_eval and cb_eval_user_data of `params`.
    void attach(llama_context_params & params);

    // Learns the FFN blocks of the context's model from a decode in which nothing is computed. The context's memory
    // must be empty; it is empty again afterwards. Throws Unsupported, naming the architecture and what was found.
    void probe(llama_context * ctx);

    // Layers of the model; 0 before probe().
    int n_layer() const;
    // [n_layer] 1 where the layer has an FFN block that can be skipped; empty before probe().
    const std::vector<uint8_t> & skippable() const;

    // Takes effect with the next decode. Throws std::invalid_argument, and Unsupported before a successful probe()
    // for any policy but dense.
    void           set_config(const Config & config);
    const Config & config() const;
    // The config as it applies to this model.
    const Settings & settings() const;

    // prompt tokens have no index; the i-th generated token (i = 0, 1, ...) may skip if i >= warm_up_index.
    RowKind row_kind(int64_t generated_index) const;

    // llama_decode with skipping; returns its status. `kinds` has one entry per token of the batch, or is null:
    // all prompt. Rows that may skip must belong to one sequence per call, in order of position.
    int32_t decode(llama_context * ctx, const llama_batch & batch, const RowKind * kinds);

    Stats stats() const;
    void  reset_stats();

    // Records similarity and skipped blocks of every generated token from start_trace() to stop_trace().
    void  start_trace();
    Trace stop_trace();

private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace ffnskip
