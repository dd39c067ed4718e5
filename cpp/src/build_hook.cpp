#include "build_hook.h"

#include "device_check.h"
#include "ffnskip/errors.h"
#include "graph_edit.h"

#include <algorithm>
#include <string>

#ifdef FFNSKIP_HAVE_BUILD_HOOK
// Declared in llama.cpp's src/llama-ext.h, which is not installed.
LLAMA_API void llama_set_nextn_layer_offset(llama_context * ctx, int32_t offset);
#endif

namespace ffnskip {
namespace {

bool is_gpu(ggml_backend_dev_t device) {
    const auto type = ggml_backend_dev_type(device);
    return type == GGML_BACKEND_DEVICE_TYPE_GPU || type == GGML_BACKEND_DEVICE_TYPE_IGPU;
}

bool some_gpu() {
    for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
        if (is_gpu(ggml_backend_dev_get(i))) {
            return true;
        }
    }
    return false;
}

}  // namespace

#ifdef FFNSKIP_HAVE_BUILD_HOOK

// Where a node will be computed is not known yet when its graph is built, so every device that may compute it has to honour
// the edits.
static void require_devices() {
    for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
        const ggml_backend_dev_t device = ggml_backend_dev_get(i);
        const bool               cpu    = ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_CPU;
        if (const std::string & fault = cpu || is_gpu(device) ? edits_fault(device) : std::string(); !fault.empty()) {
            throw Unsupported(fault);
        }
    }
}

void BuildHook::attach(llama_context * ctx) {
    if (llama_model_n_layer_nextn(llama_get_model(ctx)) > 0) {
        throw Unsupported("this model predicts several tokens: its graphs read what tells graphs apart");
    }
    require_devices();

    static llama_sampler_i interface = [] {
        llama_sampler_i made = {};
        made.name            = [](const llama_sampler *) { return "ffnskip"; };
        made.apply           = [](llama_sampler *, llama_token_data_array *) {};
        made.backend_init    = [](llama_sampler *, ggml_backend_buffer_type_t, uint32_t) { return true; };
        made.backend_apply   = &built;
        return made;
    }();
    samplers_.emplace_back(llama_sampler_chain_init(llama_sampler_chain_default_params()));
    llama_sampler_chain_add(samplers_.back().get(), llama_sampler_init(&interface, this));
    if (!llama_set_sampler(ctx, llama_seq_id(llama_max_parallel_sequences()), samplers_.back().get())) {
        throw Unsupported("libllama takes no sampler that sees the graphs of this context");
    }
    unknown_decode_ = false;  // a sampler is tried with a graph of its own
    ctx_            = ctx;
    want(k_unknown);
}

void BuildHook::want(int32_t edition) {
    wanted_ = edition;
    llama_set_nextn_layer_offset(ctx_, edition);
}

#else

void BuildHook::attach(llama_context *) {
    throw Unsupported("this llama.cpp shows nobody the graphs that it builds");
}

void BuildHook::want(int32_t edition) {
    wanted_ = edition;
}

#endif

int32_t BuildHook::run(Probe & probe) {
    // The first decode also builds graphs that libllama plans its memory with, so the second one is the probe's: the
    // parameters are the same but for the edition.
    probing_ = true;
    want(++last_edition_);
    int32_t status = probe.decode();
    probe_         = &probe;
    want(++last_edition_);
    status          = status == 0 ? probe.decode() : status;
    const bool seen = std::exchange(probe_, nullptr) == nullptr;
    probing_        = false;
    want(k_unknown);
    if (error_ != nullptr) {
        std::rethrow_exception(std::exchange(error_, nullptr));
    }
    if (status == 0 && !seen) {
        throw Unsupported("libllama does not build this model's graphs anew when they are to change");
    }
    return status;
}

void BuildHook::set_model(GraphMap map, const ggml_tensor * embedding) {
    // Weights of experts come to a GPU as needed, and ggml reads which are needed before it looks at the node that needs
    // them.
    for (const Node & node : map.nodes) {
        if (node.op == GGML_OP_MUL_MAT_ID && node.weight != nullptr && some_gpu() &&
            ggml_backend_buffer_is_host(node.weight->buffer)) {
            throw Unsupported("experts in host memory beside a GPU");
        }
    }
    follower_.reset(std::move(map));
    embedding_ = embedding;
    left_out_  = TokenState();
}

void BuildHook::leave_out(const Settings & settings) {
    left_out_.begin(settings, 0, 0);
    ++last_edition_;
}

void BuildHook::begin(bool skips) {
    want(skips ? last_edition_ : k_full);
}

void BuildHook::end(bool succeeded) {
    const int32_t wanted = wanted_;
    want(k_unknown);
    if (error_ != nullptr) {
        ++last_edition_;  // the graph was left as it is, and must not be used again
        std::rethrow_exception(std::exchange(error_, nullptr));
    }
    if (succeeded && built_ != wanted) {
        throw Unsupported("libllama used a graph again that it had to build anew");
    }
}

void BuildHook::count(Recorder & recorder) const {
    for (size_t block = 0; block < follower_.n_blocks(); ++block) {
        if (left_out_.skips(int(block))) {
            recorder.dropped(int(block), left_out_.leaves_gaps());
        }
    }
}

void BuildHook::abandon() {
    if (wanted_ != k_unknown) {
        want(k_unknown);
        last_edition_ += error_ != nullptr;
        error_ = nullptr;
    }
}

// ---- called by libllama ----

void BuildHook::built(llama_sampler * sampler, ggml_context *, ggml_cgraph * graph, llama_sampler_data * data) {
    *data      = {};  // nothing is sampled from it
    auto & our = *static_cast<BuildHook *>(sampler->ctx);
    try {  // no exception may pass through libllama
        our.built(graph);
    } catch (...) {
        our.error_ = std::current_exception();
    }
}

void BuildHook::built(ggml_cgraph * graph) {
    built_ = wanted_;
    nodes_.resize(size_t(ggml_graph_n_nodes(graph)));
    for (size_t i = 0; i < nodes_.size(); ++i) {
        nodes_[i] = ggml_graph_node(graph, int(i));
    }
    if (probing_) {
        for (ggml_tensor * node : nodes_) {
            probe_ != nullptr ? probe_->see(node) : ffnskip::leave_out(node);
        }
        probe_ = nullptr;
    } else if (wanted_ == k_unknown) {
        unknown_decode_ = true;
    } else if (wanted_ != k_full) {
        edit();
    }
}

void BuildHook::edit() {
    const auto reads = [&](const ggml_tensor * node) {
        return node->op == GGML_OP_GET_ROWS && node->src[0] == embedding_;
    };
    const auto begin = std::find_if(nodes_.begin(), nodes_.end(), reads);
    const auto known = [&] {
        follower_.begin();
        return std::all_of(begin, nodes_.end(), [&](ggml_tensor * node) { return follower_.next(node) != nullptr; });
    };
    if (!known()) {
        follower_.begin();
        std::for_each(begin, nodes_.end(), [&](ggml_tensor * node) { follower_.next(node); });
        follower_.keep_learnt();
        known();
    }
    for (size_t number = 0; number < follower_.n_blocks(); ++number) {
        const Block & block = follower_.block(int(number));
        if (left_out_.skips(int(number)) && !block.skippable) {
            throw Unsupported(std::string(k_block_kind_names[size_t(block.kind)]) + " of layer " +
                              std::to_string(block.layer) + " can no longer be skipped: " + block.why_not);
        }
    }
    // All is known now, so that a graph is edited in whole or not at all.
    for (auto node = begin; node != nodes_.end(); ++node) {
        const Node & expected = follower_.node(int(node - begin));
        if (expected.role == Role::none || !left_out_.skips(expected.block)) {
            continue;
        }
        switch (expected.role) {
            case Role::residual_add:
                pass_h(*node, follower_.block(expected.block).h_src);
                break;
            case Role::cached:
                if (left_out_.leaves_gaps()) {
                    ffnskip::leave_out(*node);
                }
                break;
            case Role::body:
            case Role::branch:
                ffnskip::leave_out(*node);
                break;
            case Role::layer_output:
            case Role::none:
                break;
        }
    }
}

}  // namespace ffnskip
