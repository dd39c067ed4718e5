#include "session.h"

#include "errors.h"
#include "log.h"
#include "machine.h"
#include "progress_line.h"

namespace app {
namespace {

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
    decoding_.emplace(context_.get(), controller());
    take_error();  // what is logged from here on is of a decode
}

void Session::make_context(const Model & model, const llama_context_params & params) {
    take_error();
    context_.reset(llama_init_from_model(model.get(), params));
    if (context_ == nullptr) {
        throw BadInput("libllama can't make a context of " + std::to_string(params.n_ctx) + " tokens: " + take_error());
    }
    if (llama_get_memory(context_.get()) == nullptr) {
        throw BadInput(model.name() + ": it keeps no context; a model that generates text token by token is needed");
    }
    model.apply_adapters(context_.get());
}

void Session::begin_skipping(const Model & model, const Arguments & args, llama_context_params params) {
    controller_.emplace();
    try {
        if (!args.config.is_static() || !hook(model, params)) {
            controller_->attach(params);
            make_context(model, params);
            controller_->probe(context_.get());
        }
        controller_->set_weights_source({ model.path(), params.n_threads_batch,
                                          ffnskip::ProgressLine("ffnskip-main: storing the weights by channel") });
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

bool Session::hook(const Model & model, const llama_context_params & params) {
    make_context(model, params);
    try {
        controller_->hook(context_.get());
    } catch (const ffnskip::Unsupported &) {
        context_.reset();
    }
    return controller_->hooked();
}

void Session::feed_generated(llama_token token) {
    decoding_->generated(token);
    generated_.push_back(token);
}

}  // namespace app
