// What ggml calls about every node: the evaluation, or a probe, and then a callback that was in the context parameters
// before ours.
#pragma once

#include "evaluation.h"
#include "probe.h"

#include <llama.h>

#include <exception>
#include <stdexcept>
#include <utility>

namespace ffnskip {

class Callback {
public:
    explicit Callback(Evaluation & evaluation) : evaluation_(evaluation) {}

    void attach(llama_context_params & params) {
        if (params.cb_eval != &call || params.cb_eval_user_data != this) {
            if (attached_ && (params.cb_eval != next_ || params.cb_eval_user_data != next_user_data_)) {
                throw std::invalid_argument(
                    "attach: the controller is attached already, to context parameters with another "
                    "cb_eval; a controller serves one context");
            }
            next_           = params.cb_eval;
            next_user_data_ = params.cb_eval_user_data;
            attached_       = true;
        }
        params.cb_eval           = &call;
        params.cb_eval_user_data = this;
    }

    // Nothing is computed in its decode, so the other callback sees nothing of it.
    int32_t run(Probe & probe) {
        probe_               = &probe;
        const int32_t status = probe.decode();
        probe_               = nullptr;
        rethrow();
        return status;
    }

    bool failed() const { return error_ != nullptr; }
    // What was thrown in the callback, now that llama_decode has returned.
    void rethrow() {
        if (failed()) {
            std::rethrow_exception(std::exchange(error_, nullptr));
        }
    }

private:
    static bool call(ggml_tensor * node, bool ask, void * user_data) {
        auto & self = *static_cast<Callback *>(user_data);
        return ask ? self.ask(node) : self.observe(node);
    }

    bool ask(ggml_tensor * node) {
        if (probe_ != nullptr) {
            guarded([&] { probe_->see(node); });
            return false;
        }
        we_want_ = false;
        guarded([&] { we_want_ = evaluation_.ask(node); });
        next_wants_ = next_ != nullptr && next_(node, true, next_user_data_);
        return we_want_ || next_wants_;
    }

    // What is returned decides whether the evaluation goes on; false ends the split and still reports success. Where
    // the other callback wants that, what follows is no graph to learn from.
    bool observe(ggml_tensor * node) {
        if (we_want_) {
            guarded([&] { evaluation_.observe(node); });
        }
        const bool goes_on = !next_wants_ || next_(node, false, next_user_data_);
        if (!goes_on) {
            evaluation_.abandon();
        }
        return goes_on;
    }

    // No exception may pass through ggml.
    template <typename Step> void guarded(Step step) {
        try {
            step();
        } catch (...) {
            error_ = std::current_exception();
            evaluation_.abandon();
        }
    }

    Evaluation &       evaluation_;
    Probe *            probe_ = nullptr;  // that is decoding
    std::exception_ptr error_;

    ggml_backend_sched_eval_callback next_           = nullptr;
    void *                           next_user_data_ = nullptr;
    bool                             attached_       = false;
    bool                             we_want_        = false;  // to see the node in work
    bool                             next_wants_     = false;
};

}  // namespace ffnskip
