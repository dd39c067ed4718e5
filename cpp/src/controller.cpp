// The public face: attaches to a context, learns its model, and decodes through an Evaluation.
#include "ffnskip/controller.h"

#include "evaluation.h"
#include "ffnskip/version.h"
#include "fingerprint.h"
#include "policy.h"
#include "recorder.h"
#include "sequences.h"
#include "ubatches.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <string>
#include <utility>

namespace ffnskip {
namespace {

constexpr int k_max_attempts = 8;  // a batch meets a new graph structure at most once per ubatch shape

std::string architecture(const llama_model * model) {
    char text[64] = "?";
    llama_model_meta_val_str(model, "general.architecture", text, sizeof(text));
    return text;
}

Config dense_config() {
    Config config;
    config.policy = Policy::dense;
    return config;
}

bool any(const std::vector<uint8_t> & flags) {
    return std::count(flags.begin(), flags.end(), uint8_t(1)) > 0;
}

FfnWeight describe(const ggml_tensor * weight) {
    return { weight->name, ggml_type_name(weight->type), uint64_t(ggml_nelements(weight)), ggml_nbytes(weight) };
}

FfnBlock describe(const Block & block, int n_layer) {
    FfnBlock out;
    out.layer           = block.layer;
    out.why_not         = block.layer == n_layer - 1 ? "it is of the last layer, which always runs" : block.refusal;
    out.skippable       = out.why_not.empty();
    out.residual        = block.form == Form::parallel ? "parallel" : block.form == Form::in_place ? "in place" : "sequential";
    out.bytes_per_token = block.bytes;
    bool shared         = false;
    for (const ggml_tensor * weight : block.weights) {
        out.weights.push_back(describe(weight));
        shared = shared || std::strstr(weight->name, "shexp") != nullptr || std::strstr(weight->name, "chexps") != nullptr;
    }
    out.kind = block.experts ? (shared ? "experts + shared" : "experts") : block.gated ? "gated" : "plain";
    return out;
}

// Decodes two tokens, one of them with output, so that a residual add that loses rows to pruning shows.
int32_t decode_probe(llama_context * ctx) {
    const llama_vocab * vocab    = llama_model_get_vocab(llama_get_model(ctx));
    const int32_t       n_tokens = int32_t(std::min<uint32_t>(2, llama_n_ubatch(ctx)));
    const llama_token   token    = std::max(0, llama_vocab_bos(vocab));

    llama_token    tokens[] = { token, token };
    llama_pos      pos[]    = { 0, 1 };
    llama_seq_id   seq      = 0;
    llama_seq_id * seqs[]   = { &seq, &seq };
    int32_t        n_seq[]  = { 1, 1 };
    int8_t         logits[] = { int8_t(n_tokens == 1), 1 };
    return llama_decode(ctx, { n_tokens, tokens, nullptr, pos, n_seq, seqs, logits });
}

// How the context cuts its batches into ubatches, as a rule.
Split usual_split(const llama_context * ctx) {
    const bool unified = llama_n_ctx_seq(ctx) == llama_n_ctx(ctx);  // one memory, shared by all sequences
    if (llama_n_seq_max(ctx) == 1) {
        return Split::simple;
    }
    if (llama_model_is_hybrid(llama_get_model(ctx))) {
        return unified ? Split::equal : Split::equal_sequential;
    }
    return unified ? Split::simple : Split::equal_sequential;
}

// Where the sequences of a batch ended before it, to go back there if it has to be decoded again.
class Ends {
public:
    void note(llama_memory_t memory, const llama_batch & batch) {
        ends_.clear();
        for (int32_t i = 0; i < batch.n_tokens; ++i) {
            const int32_t n_seq = batch.n_seq_id == nullptr ? 1 : batch.n_seq_id[i];
            for (int32_t s = 0; s < n_seq; ++s) {
                note(memory, batch.seq_id == nullptr ? 0 : batch.seq_id[i][s]);
            }
        }
    }

    bool go_back(llama_memory_t memory) const {
        return std::all_of(ends_.begin(), ends_.end(), [&](const std::pair<llama_seq_id, llama_pos> & end) {
            return llama_memory_seq_rm(memory, end.first, end.second + 1, -1);
        });
    }

private:
    void note(llama_memory_t memory, llama_seq_id seq) {
        const auto same = [&](const std::pair<llama_seq_id, llama_pos> & end) { return end.first == seq; };
        if (seq >= 0 && size_t(seq) < llama_max_parallel_sequences() && std::none_of(ends_.rbegin(), ends_.rend(), same)) {
            ends_.emplace_back(seq, llama_memory_seq_pos_max(memory, seq));
        }
    }

    std::vector<std::pair<llama_seq_id, llama_pos>> ends_;
};

}  // namespace

struct Controller::Impl {
    int                  n_layer = 0;
    std::vector<uint8_t> skippable;
    std::vector<FfnBlock> ffn_map;
    Config               config = dense_config();
    Settings             settings;
    Recorder             recorder;
    Evaluation           evaluation{ settings, recorder };
    Fingerprint          fingerprint;
    Sequences            sequences;
    Ends                 ends;
    std::exception_ptr   error;  // thrown in the callback, kept until llama_decode has returned
    std::string          why_dense = "probe() has not been called";  // why nothing can be skipped, where that is so

    // A callback that was in the context parameters before ours, and who of the two asked to see the node in work.
    ggml_backend_sched_eval_callback next           = nullptr;
    void *                           next_user_data = nullptr;
    bool                             we_want        = false;
    bool                             next_wants     = false;

    static bool callback(ggml_tensor * node, bool ask, void * user_data) {
        auto & self = *static_cast<Impl *>(user_data);
        return ask ? self.ask(node) : self.observe(node);
    }

    bool ask(ggml_tensor * node) {
        if (evaluation.probing()) {
            return probe_node(node);
        }
        guarded([&] { we_want = evaluation.ask(node); });
        next_wants = next != nullptr && next(node, true, next_user_data);
        return we_want || next_wants;
    }

    // The other callback sees nothing of the probe: nothing is computed in it.
    bool probe_node(ggml_tensor * node) {
        guarded([&] {
            fingerprint.add(node);
            evaluation.ask(node);
        });
        return false;
    }

    // What is returned decides whether the evaluation goes on; false ends the split and still reports success. Where the
    // other callback wants that, what follows is no graph to learn from.
    bool observe(ggml_tensor * node) {
        if (we_want) {
            guarded([&] { evaluation.observe(node); });
        }
        const bool goes_on = !next_wants || next(node, false, next_user_data);
        if (!goes_on) {
            evaluation.abandon();
        }
        return goes_on;
    }

    // No exception may pass through ggml.
    template <typename Step> void guarded(Step step) {
        try {
            step();
        } catch (...) {
            error   = std::current_exception();
            we_want = false;
            evaluation.abandon();
        }
    }

    void rethrow() {
        if (error != nullptr) {
            std::rethrow_exception(std::exchange(error, nullptr));
        }
    }

    void probe(llama_context * ctx) {
        const llama_model *  model  = llama_get_model(ctx);
        const std::string    arch   = architecture(model);
        const llama_memory_t memory = llama_get_memory(ctx);
        if (memory == nullptr || llama_model_has_encoder(model) || !llama_model_has_decoder(model)) {
            throw Unsupported("architecture '" + arch + "' does not generate token by token; there is no FFN block to skip");
        }
        for (llama_seq_id seq = 0; seq < llama_seq_id(llama_n_seq_max(ctx)); ++seq) {
            if (llama_memory_seq_pos_max(memory, seq) >= 0) {
                throw std::invalid_argument("probe: the context is in use (sequence " + std::to_string(seq) +
                                            "); its memory must be empty");
            }
        }
        if ((llama_model_is_hybrid(model) || llama_model_is_recurrent(model)) && llama_n_rs_seq(ctx) > 0) {
            throw Unsupported("architecture '" + arch + "' with n_rs_seq = " + std::to_string(llama_n_rs_seq(ctx)) +
                              ": batches are then split in a way that is not known; use n_rs_seq = 0");
        }
        n_layer = llama_model_n_layer(model);
        fingerprint.begin(arch, n_layer, llama_model_n_embd(model));
        if (n_layer > TokenState::k_max_layers) {
            throw Unsupported("architecture '" + arch + "' has " + std::to_string(n_layer) + " layers, more than " +
                              std::to_string(TokenState::k_max_layers));
        }
        if (llama_n_seq_max(ctx) > Ubatches::k_max_sequences) {
            throw Unsupported("the context has " + std::to_string(llama_n_seq_max(ctx)) + " sequences, more than " +
                              std::to_string(Ubatches::k_max_sequences));
        }
        skippable.clear();
        config   = dense_config();
        settings = Settings();
        judge(learn_model(ctx, memory), arch);
    }

    const GraphMap * learn_model(llama_context * ctx, llama_memory_t memory) {
        evaluation.begin_probe(n_layer, usual_split(ctx), int32_t(llama_n_ubatch(ctx)));
        const int32_t    status = decode_probe(ctx);
        const GraphMap * map    = evaluation.end_probe();
        llama_memory_clear(memory, true);
        llama_synchronize(ctx);  // or the first real batch would be timed together with this one
        llama_perf_context_reset(ctx);
        rethrow();
        if (status != 0) {
            throw std::runtime_error("probe: llama_decode returned " + std::to_string(status));
        }
        fingerprint.finish();
        return map;
    }

    void judge(const GraphMap * map, const std::string & arch) {
        std::vector<uint8_t> has_ffn(size_t(n_layer), 0);
        std::vector<uint8_t> may_skip(size_t(n_layer), 0);
        ffn_map.clear();
        for (const Block & block : map != nullptr ? map->blocks : std::vector<Block>()) {
            if (block.layer < 0) {
                continue;
            }
            ffn_map.push_back(describe(block, n_layer));
            has_ffn[size_t(block.layer)]  = 1;
            may_skip[size_t(block.layer)] = uint8_t(ffn_map.back().skippable);
        }
        recorder.set_model(has_ffn);
        // Not the last one: its rows are pruned to those with output, which is not why a model is refused.
        for (const FfnBlock & block : ffn_map) {
            if (!block.skippable && block.layer != n_layer - 1) {
                throw Unsupported("architecture '" + arch + "', layer " + std::to_string(block.layer) +
                                  ": the FFN block can't be skipped: " + block.why_not);
            }
        }
        if (!any(may_skip)) {
            throw Unsupported("architecture '" + arch + "' has no FFN block that can be skipped");
        }
        skippable = may_skip;
    }

    int32_t decode(llama_context * ctx, const llama_batch & rows, const RowKind * kinds, const std::function<int32_t()> & run) {
        const llama_memory_t memory = llama_get_memory(ctx);
        if (n_layer == 0 || rows.token == nullptr) {
            kinds = nullptr;
        }
        if (kinds != nullptr) {
            ends.note(memory, rows);
        }
        for (int attempt = 0; attempt < k_max_attempts; ++attempt) {
            evaluation.begin_decode(rows, kinds);
            const int32_t status = run();
            const bool    repeat = evaluation.end_decode(status == 0 && error == nullptr);
            rethrow();
            if (!repeat) {
                return status;
            }
            llama_synchronize(ctx);  // llama.cpp counts what it computed at each synchronisation: this is another decode
            if (!ends.go_back(memory)) {
                throw Unsupported("the graph of this model changed and its memory can't go back to repeat the tokens");
            }
        }
        throw Unsupported("the graph of this model changes from one evaluation to the next");
    }
};

Controller::Controller() : impl_(std::make_unique<Impl>()) {}
Controller::~Controller() = default;

void Controller::attach(llama_context_params & params) {
    require_llama_version();
    if (params.cb_eval != &Impl::callback || params.cb_eval_user_data != impl_.get()) {
        impl_->next           = params.cb_eval;
        impl_->next_user_data = params.cb_eval_user_data;
    }
    params.cb_eval           = &Impl::callback;
    params.cb_eval_user_data = impl_.get();
}

void Controller::probe(llama_context * ctx) {
    try {
        impl_->probe(ctx);
    } catch (const Unsupported & unsupported) {
        impl_->why_dense = unsupported.what();
        throw;
    }
}

int Controller::n_layer() const {
    return impl_->n_layer;
}

const std::vector<uint8_t> & Controller::skippable() const {
    return impl_->skippable;
}

void Controller::set_config(const Config & config) {
    config.validate();
    if (!any(impl_->skippable) && config.policy != Policy::dense) {
        throw Unsupported("policy '" + std::string(policy_name(config.policy)) + "': " + impl_->why_dense);
    }
    impl_->settings = resolve(config, impl_->skippable);
    impl_->config   = config;
}

void Controller::set_profile(const Profile & profile) {
    const std::string model = fingerprint();
    if (profile.model != model) {
        throw std::invalid_argument("profile " + profile.path + ": it is for model '" + profile.model + "', but this is '" +
                                    model + "'");
    }
    try {
        set_config(profile.config);
    } catch (const std::invalid_argument & error) {
        throw std::invalid_argument("profile " + profile.path + ": " + error.what());
    }
}

const std::vector<FfnBlock> & Controller::ffn_map() const {
    return impl_->ffn_map;
}

std::string Controller::fingerprint() const {
    return impl_->fingerprint.text();
}

const Config & Controller::config() const {
    return impl_->config;
}

const Settings & Controller::settings() const {
    return impl_->settings;
}

RowKind Controller::row_kind(int64_t generated_index) const {
    return generated_index >= impl_->settings.warm_up_index ? RowKind::skippable : RowKind::warm_up;
}

int32_t Controller::decode(llama_context * ctx, const llama_batch & batch, const RowKind * kinds) {
    return impl_->decode(ctx, batch, kinds, [&] { return llama_decode(ctx, batch); });
}

int32_t Controller::decode(llama_context * ctx, const llama_batch & rows, const std::function<int32_t()> & run) {
    const llama_memory_t memory = llama_get_memory(ctx);
    if (memory == nullptr) {
        return run();
    }
    const RowKind * kinds  = impl_->sequences.classify(memory, rows, impl_->settings.warm_up_index);
    const int32_t   status = impl_->decode(ctx, rows, kinds, run);
    if (status == 0) {
        impl_->sequences.commit();
    }
    return status;
}

int32_t Controller::decode(llama_context * ctx, const llama_batch & batch) {
    return decode(ctx, batch, [&] { return llama_decode(ctx, batch); });
}

void Controller::copied(llama_seq_id from, llama_seq_id to) {
    impl_->sequences.copied(from, to);
}

void Controller::shifted(llama_seq_id seq, llama_pos p0, llama_pos p1, llama_pos delta) {
    impl_->sequences.shifted(seq, p0, p1, delta);
}

void Controller::replaced(llama_seq_id seq) {
    impl_->sequences.replaced(seq);
}

Stats Controller::stats() const {
    return impl_->recorder.stats();
}

void Controller::reset_stats() {
    impl_->recorder.reset_stats();
}

void Controller::start_trace() {
    impl_->recorder.start_trace();
}

Trace Controller::stop_trace() {
    return impl_->recorder.stop_trace();
}

}  // namespace ffnskip
