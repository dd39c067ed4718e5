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

// Whether the memory holds all that a token at position `from` of `seq` attends to. Layers with a sliding window of
// `n_swa` positions (0: none) forget what lies before it; the positions that they still have begin at pos_min.
bool window_is_there(llama_memory_t memory, llama_seq_id seq, llama_pos from, int32_t n_swa) {
    return n_swa <= 0 || llama_memory_seq_pos_min(memory, seq) <= std::max(0, from - n_swa + 1);
}

// llama_decode as a `run` of Controller::decode().
struct Decode {
    llama_context *     ctx;
    const llama_batch & batch;

    static int32_t run(void * self) {
        const auto & call = *static_cast<const Decode *>(self);
        return llama_decode(call.ctx, call.batch);
    }
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
    Reuse                reuse = Reuse::all;
    uint64_t             key   = 0;      // of the settings
    int32_t              n_swa = 0;
    bool                 inside = false;  // a decode; llama_decode may be a library's that leads back here
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
        n_swa   = llama_model_n_swa(model);
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
        key      = key_of(settings);
        sequences.forget();
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
            throw DecodeError(status);
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

    using Run = int32_t (*)(void * data);

    int32_t decode(llama_context * ctx, const llama_batch & rows, Fed fed, Run run, void * data) {
        const llama_memory_t memory = llama_get_memory(ctx);
        if (memory == nullptr || inside) {
            return run(data);
        }
        const Inside    guard(*this);
        const RowKind * kinds = sequences.classify(memory, rows, fed, settings.warm_up_index);
        repeat_skipped(ctx, memory);
        return decode(ctx, memory, rows, kinds, run, data);
    }

    int32_t decode(llama_context * ctx, const llama_batch & rows, const RowKind * kinds) {
        Decode               call{ ctx, rows };
        const llama_memory_t memory = llama_get_memory(ctx);
        if (memory == nullptr || inside) {
            return Decode::run(&call);
        }
        const Inside guard(*this);
        sequences.note(memory, rows);
        return decode(ctx, memory, rows, kinds, Decode::run, &call);
    }

    int32_t decode(llama_context * ctx, llama_memory_t memory, const llama_batch & rows, const RowKind * kinds, Run run,
                   void * data) {
        if (rows.token == nullptr) {
            kinds = nullptr;
        }
        for (int attempt = 0; attempt < k_max_attempts; ++attempt) {
            evaluation.begin_decode(rows, kinds);
            const int32_t status = run(data);
            const bool    repeat = evaluation.end_decode(status == 0 && error == nullptr);
            rethrow();
            if (!repeat) {
                if (status == 0) {
                    sequences.commit(rows, evaluation.skipped_rows(), key);
                }
                return status;
            }
            llama_synchronize(ctx);  // llama.cpp counts what it computed at each synchronisation: this is another decode
            if (!go_back(memory)) {
                throw Unsupported("the graph of this model changed and its memory can't go back to repeat the tokens");
            }
        }
        throw Unsupported("the graph of this model changes from one evaluation to the next");
    }

    // To where the sequences of the running batch ended before it. False where the memory can't, or has already
    // overwritten what the batch attends to.
    bool go_back(llama_memory_t memory) const {
        const auto & parts = sequences.parts();
        return std::all_of(parts.begin(), parts.end(), [&](const Sequences::Part & part) {
            return window_is_there(memory, part.seq, part.next, n_swa) &&
                   llama_memory_seq_rm(memory, part.seq, part.next, -1);
        });
    }

    // Computes again what prompts of the running batch must not build on.
    void repeat_skipped(llama_context * ctx, llama_memory_t memory) {
        for (const Sequences::Part & part : sequences.parts()) {
            const llama_pos from = sequences.first_to_repeat(part.seq, part.next, reuse == Reuse::full, key);
            if (!part.generated && from < part.next) {
                repeat(ctx, memory, part.seq, from, part.next);
                sequences.repeated(part.seq);
            }
        }
    }

    // Decodes positions [from, end) of a sequence in full.
    void repeat(llama_context * ctx, llama_memory_t memory, llama_seq_id seq, llama_pos from, llama_pos end) {
        const llama_pos begin = window_is_there(memory, seq, from, n_swa) ? from : 0;
        const auto *    found = sequences.tokens(seq, begin, end);
        if (found == nullptr || !llama_memory_seq_rm(memory, seq, begin, -1)) {
            throw Unsupported("positions " + std::to_string(begin) + " to " + std::to_string(end - 1) + " of sequence " +
                              std::to_string(seq) + " were computed with skipping and can't be computed again: " +
                              (found == nullptr ? "their tokens are not known" : "the model's memory can't go back"));
        }
        const std::vector<llama_token> tokens(found, found + (end - begin));
        const int32_t                  n_batch = int32_t(llama_n_batch(ctx));
        llama_batch                    batch   = llama_batch_init(n_batch, 0, 1);
        int32_t                        status  = 0;
        for (size_t done = 0; status == 0 && done < tokens.size(); done += size_t(batch.n_tokens)) {
            batch.n_tokens = int32_t(std::min(size_t(n_batch), tokens.size() - done));
            for (int32_t i = 0; i < batch.n_tokens; ++i) {
                batch.token[i]     = tokens[done + size_t(i)];
                batch.pos[i]       = begin + llama_pos(done) + i;
                batch.n_seq_id[i]  = 1;
                batch.seq_id[i][0] = seq;
                batch.logits[i]    = 0;
            }
            evaluation.begin_decode(batch, nullptr);
            status = llama_decode(ctx, batch);
            evaluation.end_decode(status == 0);
        }
        llama_batch_free(batch);
        rethrow();
        if (status != 0) {
            throw DecodeError(status);
        }
    }

    // A decode is going on. What was decoded past it is not known; however it ends, the evaluation forgets its batch.
    class Inside {
    public:
        explicit Inside(Impl & impl) : impl_(impl) {
            impl_.inside = true;
            if (impl_.evaluation.take_unknown_decode()) {
                impl_.sequences.forget();
            }
        }
        ~Inside() {
            impl_.inside = false;
            impl_.evaluation.abandon();
        }
        Inside(const Inside &)             = delete;
        Inside & operator=(const Inside &) = delete;

    private:
        Impl & impl_;
    };
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
    impl_->key      = key_of(impl_->settings);
    impl_->recorder.judge(impl_->settings);
}

void Controller::set_profile(const Profile & profile) {
    const std::string model = fingerprint();
    if (profile.model != model) {
        throw ProfileMismatch("profile " + profile.path + ": it is for model '" + profile.model + "', but this is '" +
                              model + "'");
    }
    try {
        set_config(profile.config);
        impl_->recorder.trust();
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

int32_t Controller::decode(llama_context * ctx, const llama_batch & batch, Fed fed) {
    Decode call{ ctx, batch };
    return impl_->decode(ctx, batch, fed, Decode::run, &call);
}

int32_t Controller::decode(llama_context * ctx, const llama_batch & rows, int32_t (*run)(void * data), void * data) {
    return impl_->decode(ctx, rows, Fed::recognise, run, data);
}

int32_t Controller::decode(llama_context * ctx, const llama_batch & batch, const RowKind * kinds) {
    return impl_->decode(ctx, batch, kinds);
}

void Controller::set_reuse(Reuse reuse) {
    impl_->reuse = reuse;
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

std::string Controller::account(llama_seq_id seq) const {
    return impl_->sequences.save(seq);
}

void Controller::restore(llama_seq_id seq, const std::string & account) {
    if (!impl_->sequences.load(seq, account)) {
        throw std::invalid_argument("restore: these are not the bytes of an account of a sequence");
    }
}

void Controller::count_from_here(llama_seq_id seq) {
    impl_->sequences.count_from_here(seq);
}

void Controller::outputs_unread() {
    impl_->sequences.outputs_unread();
}

llama_pos Controller::first_to_repeat(llama_seq_id seq, llama_pos end) const {
    return impl_->sequences.first_to_repeat(seq, end, impl_->reuse == Reuse::full, impl_->key);
}

Stats Controller::stats() const {
    return impl_->recorder.stats();
}

void Controller::reset_stats() {
    impl_->recorder.reset_stats();
}

std::optional<std::string> Controller::take_notice() {
    return impl_->recorder.take_notice();
}

void Controller::start_trace() {
    impl_->recorder.start_trace();
}

Trace Controller::stop_trace() {
    return impl_->recorder.stop_trace();
}

}  // namespace ffnskip
