// Edits graphs when libllama builds them, so that blocks which every token leaves out need no callback in the context:
// nothing waits between the pieces of a graph, and a device that keeps graphs knows them without comparing nodes.
//
// libllama shows a sampler that may run on a device each graph it has built, before it divides it among the devices and
// plans its memory. The one here adds nothing to it. It belongs to a sequence that no batch can name, so that the outputs of
// all others stay logits.
//
// A built graph is used again as long as its parameters are the same, edits and all. One of these parameters is a number
// that nothing but multi-token prediction reads; here it tells editions of the graph apart, so that libllama builds
// a graph anew whenever another one is wanted, by its own rule.
#pragma once

#include "graph_follower.h"
#include "policy.h"
#include "probe.h"
#include "recorder.h"

#include <llama.h>

#include <cstdint>
#include <exception>
#include <memory>
#include <utility>
#include <vector>

namespace ffnskip {

class BuildHook {
public:
    // To a context without a callback, which may not outlive this object. Throws Unsupported where libllama or a device
    // does not allow it.
    void attach(llama_context * ctx);
    // The context is another one's now, or gone.
    void detach() { ctx_ = nullptr; }
    bool attached() const { return ctx_ != nullptr; }

    llama_context * context() const { return ctx_; }

    // Shows the probe a graph of which nothing is computed; llama_decode's status. Throws Unsupported where graphs are not
    // built anew when they should be.
    int32_t run(Probe & probe);
    // Throws Unsupported where blocks of this model need the callback.
    void set_model(GraphMap map, const ggml_tensor * embedding);
    // Settings that are static: what skips leaves out what they say.
    void leave_out(const Settings & settings);

    // A decode all of whose rows skip, or none does.
    void begin(bool skips);
    // It is over. Throws Unsupported where it was not computed as begin() said.
    void end(bool succeeded);
    // It is over, whatever became of it.
    void abandon();

    // An evaluation of it left blocks out.
    void count(Recorder & recorder) const;
    // Whether a graph was built outside of begin() and end() since the last call.
    bool take_unknown_decode() { return std::exchange(unknown_decode_, false); }

private:
    static constexpr int32_t k_unknown = -1, k_full = 0;  // editions; higher ones leave out

    struct Free {
        void operator()(llama_sampler * sampler) const { llama_sampler_free(sampler); }
    };

    static void built(llama_sampler * sampler, ggml_context * ctx, ggml_cgraph * graph, llama_sampler_data * data);

    void want(int32_t edition);
    void built(ggml_cgraph * graph);
    void edit();

    llama_context *                                   ctx_ = nullptr;
    std::vector<std::unique_ptr<llama_sampler, Free>> samplers_;  // of contexts attached to; they may be alive still

    GraphFollower              follower_;
    const ggml_tensor *        embedding_ = nullptr;
    TokenState                 left_out_;  // by what skips
    std::vector<ggml_tensor *> nodes_;     // of the graph being built

    Probe *            probe_          = nullptr;  // that is to see the next graph
    bool               probing_        = false;
    int32_t            last_edition_   = k_full;  // of left_out_
    int32_t            wanted_         = k_unknown;
    int32_t            built_          = k_unknown;  // of the graph built last
    bool               unknown_decode_ = false;
    std::exception_ptr error_;
};

}  // namespace ffnskip
