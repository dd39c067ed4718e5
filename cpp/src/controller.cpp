// The public face: attaches to a context, learns its model, and decodes through an Evaluation.
#include "ffnskip/controller.h"

#include "evaluation.h"
#include "policy.h"
#include "recorder.h"

#include <algorithm>
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

// Where to go back to if the batch has to be decoded again.
llama_pos first_position(llama_memory_t memory, const llama_batch & batch, llama_seq_id seq) {
    return batch.pos != nullptr ? batch.pos[0] : llama_memory_seq_pos_max(memory, seq) + 1;
}

}  // namespace

struct Controller::Impl {
    int                  n_layer = 0;
    std::vector<uint8_t> skippable;
    Config               config = dense_config();
    Settings             settings;
    Recorder             recorder;
    Evaluation           evaluation{ settings, recorder };
    std::exception_ptr   error;  // thrown in the callback, kept until llama_decode has returned
    std::string          why_dense = "probe() has not been called";  // why nothing can be skipped, where that is so

    static bool callback(ggml_tensor * node, bool ask, void * user_data) {
        auto & self = *static_cast<Impl *>(user_data);
        try {
            if (ask) {
                return self.evaluation.ask(node);
            }
            self.evaluation.observe(node);
        } catch (...) {
            self.error = std::current_exception();
            self.evaluation.abandon();
        }
        return !ask;  // false from an observation would end the split and report success
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
        if (llama_memory_seq_pos_max(memory, 0) >= 0) {
            throw std::invalid_argument("probe: the context is in use; its memory must be empty");
        }
        n_layer = llama_model_n_layer(model);
        if (n_layer > TokenState::k_max_layers) {
            throw Unsupported("architecture '" + arch + "' has " + std::to_string(n_layer) + " layers, more than " +
                              std::to_string(TokenState::k_max_layers));
        }
        skippable.clear();
        config   = dense_config();
        settings = Settings();
        judge(learn_model(ctx, memory), arch);
    }

    const GraphMap * learn_model(llama_context * ctx, llama_memory_t memory) {
        evaluation.begin_probe(n_layer);
        const int32_t    status = decode_probe(ctx);
        const GraphMap * map    = evaluation.end_probe();
        llama_memory_clear(memory, true);
        llama_synchronize(ctx);  // or the first real batch would be timed together with this one
        llama_perf_context_reset(ctx);
        rethrow();
        if (status != 0) {
            throw std::runtime_error("probe: llama_decode returned " + std::to_string(status));
        }
        return map;
    }

    void judge(const GraphMap * map, const std::string & arch) {
        std::vector<uint8_t> has_ffn(size_t(n_layer), 0);
        std::vector<uint8_t> may_skip(size_t(n_layer), 0);
        for (const Block & block : map != nullptr ? map->blocks : std::vector<Block>()) {
            if (block.layer < 0) {
                continue;
            }
            has_ffn[size_t(block.layer)] = 1;
            if (block.layer == n_layer - 1) {
                continue;  // its rows are pruned to those with output
            }
            if (!block.refusal.empty()) {
                throw Unsupported("architecture '" + arch + "', layer " + std::to_string(block.layer) +
                                  ": the FFN block can't be skipped: " + block.refusal);
            }
            may_skip[size_t(block.layer)] = 1;
        }
        recorder.set_model(has_ffn);
        if (!any(may_skip)) {
            throw Unsupported("architecture '" + arch + "' has no FFN block that can be skipped");
        }
        skippable = may_skip;
    }
};

Controller::Controller() : impl_(std::make_unique<Impl>()) {}
Controller::~Controller() = default;

void Controller::attach(llama_context_params & params) {
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
    const bool           known  = impl_->n_layer > 0 && batch.n_tokens > 0;
    const llama_memory_t memory = llama_get_memory(ctx);
    const llama_seq_id   seq    = known && batch.seq_id != nullptr ? batch.seq_id[0][0] : 0;
    const llama_pos      first  = known && kinds != nullptr ? first_position(memory, batch, seq) : 0;

    for (int attempt = 0; attempt < k_max_attempts; ++attempt) {
        impl_->evaluation.begin_decode(batch, known ? kinds : nullptr);
        const int32_t status = llama_decode(ctx, batch);
        const bool    repeat = impl_->evaluation.end_decode(status == 0 && impl_->error == nullptr);
        impl_->rethrow();
        if (!repeat) {
            return status;
        }
        llama_synchronize(ctx);  // llama.cpp counts what it computed at each synchronisation: this is another decode
        if (!llama_memory_seq_rm(memory, seq, first, -1)) {
            throw Unsupported("the graph of this model changed and its memory can't go back to repeat the token");
        }
    }
    throw Unsupported("the graph of this model changes from one evaluation to the next");
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
