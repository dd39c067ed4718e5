#include "session.h"

#include "errors.h"
#include "log.h"
#include "machine.h"

#include <algorithm>
#include <cstdio>
#include <stdexcept>

namespace app {
namespace {

// Bytes that the keys and values of `n_ctx` tokens take at least; 0 where that can't be told from the public API.
uint64_t cache_bytes(const llama_model * model, const llama_context_params & params) {
    if (llama_model_is_recurrent(model) || llama_model_is_hybrid(model) || llama_model_n_swa(model) > 0) {
        return 0;
    }
    const int64_t n_head   = std::max(1, llama_model_n_head(model));
    const int64_t n_embd   = llama_model_n_embd(model) / n_head * llama_model_n_head_kv(model);
    const double  n_values = double(params.n_ctx) * double(n_embd) * llama_model_n_layer(model);
    double        bytes    = 0.0;
    for (const ggml_type type : { params.type_k, params.type_v }) {
        bytes += n_values * double(ggml_type_size(type)) / double(ggml_blck_size(type));
    }
    return uint64_t(bytes);
}

std::string gibibytes(uint64_t bytes) {
    char text[32];
    std::snprintf(text, sizeof(text), "%.1f GiB", double(bytes) / double(1 << 30));
    return text;
}

// libllama writes to all of the cache: what the machine does not have would end the process, not the allocation.
void require_memory(const llama_model * model, const llama_context_params & params) {
    const uint64_t needed = cache_bytes(model, params);
    const uint64_t free   = free_memory();
    if (needed > free) {
        throw BadInput("--ctx-size: " + std::to_string(params.n_ctx) + " tokens of context need " + gibibytes(needed) +
                       " of memory, " + gibibytes(free) + " are free; give fewer");
    }
}

llama_context_params context_params(const Arguments & args, int32_t n_ctx) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx                = uint32_t(n_ctx);
    params.n_batch              = uint32_t(args.n_batch);
    params.n_ubatch             = uint32_t(args.n_ubatch);
    params.n_threads            = args.n_threads ? *args.n_threads : physical_cores();
    params.n_threads_batch      = args.n_threads_batch.value_or(params.n_threads);
    params.flash_attn_type      = args.flash_attn;
    params.type_k               = args.type_k;
    params.type_v               = args.type_v;
    params.no_perf              = false;
    return params;
}

}  // namespace

Session::Session(const Model & model, const Arguments & args, int32_t n_ctx, bool dense) {
    const llama_context_params params = context_params(args, n_ctx);
    require_memory(model.get(), params);
    if (!dense && (args.config.policy != ffnskip::Policy::dense || args.asks_for_skipping())) {
        begin_skipping(model, args, params);
    }
    if (context_ == nullptr) {
        make_context(model, params);
    }
    batch_.reset(new llama_batch(llama_batch_init(int32_t(llama_n_batch(context_.get())), 0, 1)));
}

void Session::make_context(const Model & model, llama_context_params params) {
    take_error();
    context_.reset(llama_init_from_model(model.get(), params));
    if (context_ == nullptr) {
        throw BadInput("libllama can't make a context of " + std::to_string(params.n_ctx) + " tokens: " + take_error());
    }
    if (llama_get_memory(context_.get()) == nullptr) {
        throw BadInput("--model '" + model.path() +
                       "': it keeps no context; a model that generates text token by token is needed");
    }
    model.apply_adapters(context_.get());
}

void Session::begin_skipping(const Model & model, const Arguments & args, llama_context_params params) {
    controller_.emplace();
    controller_->attach(params);
    make_context(model, params);
    try {
        controller_->probe(context_.get());
        if (args.profile.empty()) {
            controller_->set_config(args.config);
        } else {
            controller_->set_profile({ args.profile, args.profile_model, args.config });
        }
        controller_->set_reuse(args.reuse);
        if (!args.trace.empty()) {
            controller_->start_trace();
        }
    } catch (const ffnskip::Unsupported & unsupported) {
        why_dense_ = unsupported.what();
        if (args.asks_for_skipping()) {
            throw BadInput("nothing can be skipped: " + why_dense_ + "; leave out the options that ask for it");
        }
        context_.reset();
        controller_.reset();
    }
}

void Session::require_room(size_t n_tokens) const {
    if (!has_room(n_tokens)) {
        throw BadInput("the prompt has " + std::to_string(n_tokens) + " tokens, the context " +
                       std::to_string(n_ctx()) + "; give a shorter one, or more with --ctx-size");
    }
}

void Session::feed_prompt(const Tokens & tokens) {
    const size_t n_batch = llama_n_batch(context_.get());
    for (size_t first = 0; first < tokens.size(); first += n_batch) {
        const size_t n = std::min(n_batch, tokens.size() - first);
        decode(tokens.data() + first, int32_t(n), first + n == tokens.size(), ffnskip::Fed::prompt);
    }
}

void Session::feed_generated(llama_token token) {
    decode(&token, 1, true, ffnskip::Fed::generated);
    generated_.push_back(token);
}

void Session::clear() {
    llama_memory_clear(llama_get_memory(context_.get()), false);
    n_used_ = 0;
}

void Session::decode(const llama_token * tokens, int32_t n_tokens, bool output, ffnskip::Fed fed) {
    llama_batch & batch = *batch_;
    batch.n_tokens      = n_tokens;
    for (int32_t i = 0; i < n_tokens; ++i) {
        batch.token[i]     = tokens[i];
        batch.pos[i]       = n_used_ + i;
        batch.n_seq_id[i]  = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i]    = int8_t(output && i == n_tokens - 1);
    }
    take_error();
    const int32_t status =
        controller_ ? controller_->decode(context_.get(), batch, fed) : llama_decode(context_.get(), batch);
    if (status != 0) {
        throw std::runtime_error(ffnskip::decode_status(status) + " " + take_error());
    }
    n_used_ += n_tokens;
}

}  // namespace app
