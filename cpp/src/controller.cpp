// The public face: attaches to a context, learns its model, and decodes through an Evaluation.
#include "ffnskip/controller.h"

#include "build_hook.h"
#include "callback.h"
#include "channels/channel_file.h"
#include "channels/weight_rows.h"
#include "evaluation.h"
#include "ffnskip/session.h"
#include "ffnskip/version.h"
#include "memory.h"
#include "policy.h"
#include "probe.h"
#include "recorder.h"
#include "sequences.h"
#include "ubatches.h"

#include <algorithm>
#include <iterator>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>

namespace ffnskip {
namespace {

constexpr int k_max_attempts = 8;  // a batch meets a new graph structure at most once per ubatch shape

Config dense_config() {
    Config config;
    config.policy = Policy::dense;
    return config;
}

int n_cores() {
    return int(std::max(1u, std::thread::hardware_concurrency()));
}

}  // namespace

class Controller::Prepared {
public:
    int                       n_probes;  // when it was made
    Config                    config;
    Settings                  settings;
    uint64_t                  key;
    ChannelEvaluation::Inputs inputs;
};

struct Controller::Impl {
    int                              n_layer = 0;
    std::vector<uint8_t>             skippable;
    std::vector<std::string>         no_attention;  // [n_layer] why attention can't be left out; empty: it can
    std::vector<Block>               blocks;
    std::string                      fingerprint;
    GraphMap                         map;  // of the model
    const llama_model *              model = nullptr;
    std::vector<const ggml_tensor *> vectors;  // of the model, that the fingerprint is made from
    WeightsSource                    weights_source;
    std::shared_ptr<ChannelStore>    store;                 // once channels are left out
    std::string why_dense = "probe() has not been called";  // why nothing can be skipped, where that is so
    Config      config    = dense_config();
    Settings    settings;
    uint64_t    key   = 0;  // of the settings
    Reuse       reuse = Reuse::all;
    Recorder    recorder;
    Sequences   sequences;
    Evaluation  evaluation{ settings, recorder };
    Callback    callback{ evaluation };
    BuildHook   hook;              // in place of the callback, where it is attached
    bool        inside   = false;  // a decode; llama_decode may be a library's that leads back here
    int         n_probes = 0;

    void probe(llama_context * ctx, bool through_hook) {
        Probe probe(ctx);
        hook.detach();
        n_layer = probe.n_layer;
        fingerprint.clear();
        skippable.clear();
        no_attention.clear();
        blocks.clear();
        ++n_probes;
        set(dense_config(), Settings());
        if (llama_get_model(ctx) != model) {
            store.reset();
        }
        sequences.replaced(-1);
        if (through_hook) {
            hook.attach(ctx);
        }
        probe.finish(through_hook ? hook.run(probe) : callback.run(probe));

        fingerprint = probe.fingerprint;
        std::vector<uint8_t> may_skip;
        std::copy_if(probe.map.blocks.begin(), probe.map.blocks.end(), std::back_inserter(blocks),
                     [](const Block & block) { return block.layer >= 0; });
        for (int il = 0; il < probe.map.n_layer(); ++il) {
            const Block & attention = probe.map.blocks[size_t(block_of(il, BlockKind::attention))];
            may_skip.push_back(uint8_t(probe.map.blocks[size_t(block_of(il, BlockKind::ffn))].skippable));
            no_attention.push_back(attention.layer < 0 ? "the layer has none" : attention.why_not);
        }
        recorder.set_model({ probe.map.blocks.begin(), probe.map.blocks.end() });
        probe.require_skippable();
        skippable = may_skip;
        model     = llama_get_model(ctx);
        vectors   = std::move(probe.vectors);
        map       = std::move(probe.map);
        if (through_hook) {
            hook.set_model(map, probe.embedding);
        }
        evaluation.set_model(map, probe.embedding, usual_split(ctx), int32_t(llama_n_ubatch(ctx)));
        evaluation.channels().set_model(map, {}, nullptr);
    }

    void set(const Config & wanted, const Settings & resolved) {
        if (resolved.leaves_channels_out()) {
            copy_weights(resolved.channels);
        }
        if (!evaluation.channels().has(map, resolved.channels)) {
            evaluation.channels().set_model(map, resolved.channels, store);
        }
        use(prepared(wanted, resolved), true);
        recorder.judge(settings);
    }

    Prepared prepared(const Config & wanted, const Settings & resolved) const {
        return { n_probes, wanted, resolved, key_of(resolved), evaluation.channels().inputs_of(map, resolved) };
    }

    // `forget`: the thresholds that were found for sequences.
    void use(const Prepared & wanted, bool forget) {
        if (hook.attached()) {
            hook.leave_out(wanted.settings);
        }
        config   = wanted.config;
        settings = wanted.settings;
        key      = wanted.key;
        evaluation.channels().use(wanted.inputs, forget);
        recorder.count_attention(settings.leaves_attention_out());
    }

    Settings resolved(const Config & wanted) const {
        wanted.validate();
        if (skippable.empty() && wanted.policy != Policy::dense) {
            throw Unsupported("policy '" + std::string(policy_name(wanted.policy)) + "': " + why_dense);
        }
        if (hook.attached() && wanted.policy != Policy::dense && !wanted.is_static()) {
            throw Unsupported("policy '" + std::string(policy_name(wanted.policy)) +
                              "' decides token by token, which needs a context with the callback");
        }
        return resolve(wanted, skippable, no_attention);
    }

    // By channel, of the wanted inputs' products, [n_layer * 4]. They stay for as long as the model does, since settings come
    // and go.
    void copy_weights(const std::vector<uint8_t> & wanted) {
        ChannelStore::Wanted weights;
        weights.weights     = weights_of(wanted);
        weights.vectors     = vectors;
        weights.fingerprint = fingerprint;
        weights.model_path  = weights_source.model_path;
        weights.n_threads   = weights_source.n_threads > 0 ? weights_source.n_threads : n_cores();
        weights.progress    = weights_source.progress;

        store = store == nullptr ? ChannelStore::of(model) : store;
        store->add(weights);
    }

    std::vector<const ggml_tensor *> weights_of(const std::vector<uint8_t> & wanted) const {
        std::vector<const ggml_tensor *> weights;
        const std::string *              why_not = nullptr;
        for (size_t i = 0; i < wanted.size(); ++i) {
            const Input & input = map.inputs[i];
            if (wanted[i] && input.sparse()) {
                weights.insert(weights.end(), input.weights.begin(), input.weights.end());
            } else if (wanted[i] && why_not == nullptr && !input.weights.empty()) {
                why_not = input.usable() ? &input.why_not_sparse : &input.why_not;
            }
        }
        if (weights.empty()) {
            throw Unsupported("policy 'channels': this model has no weights whose input channels can be left out" +
                              (why_not == nullptr ? std::string() : ": " + *why_not));
        }
        return weights;
    }

    // A decode is going on. However it ends, the evaluation forgets its batch.
    struct Inside {
        Impl & impl;
        explicit Inside(Impl & impl) : impl(impl) { impl.inside = true; }
        ~Inside() {
            impl.inside = false;
            impl.evaluation.abandon();
            impl.hook.abandon();
        }
    };

    // Calls run(), which calls llama_decode, for rows of these kinds; its status.
    template <typename Run> int32_t compute(Run run, const llama_batch & rows, const RowKind * kinds) {
        if (!hook.attached()) {
            return run();
        }
        const int32_t n_skip = settings.every_row ? rows.n_tokens
                               : kinds == nullptr || !settings.skips_anything()
                                   ? 0
                                   : int32_t(std::count(kinds, kinds + rows.n_tokens, RowKind::skippable));
        if (n_skip != 0 && n_skip != rows.n_tokens) {
            throw Unsupported("rows that skip beside rows that don't need a context with the callback");
        }
        hook.begin(n_skip > 0);
        const int32_t status = run();
        hook.end(status == 0);
        const int32_t n_ubatch = int32_t(llama_n_ubatch(hook.context()));
        for (int32_t row = 0; row < n_skip; row += n_ubatch) {
            hook.count(recorder);
        }
        return status;
    }

    // run() has llama_decode called for these rows. Their kinds are seen from the batch where the caller names none.
    template <typename Run>
    int32_t decode(llama_context * ctx, const llama_batch & rows, Run run, Fed fed, const RowKind * kinds = nullptr) {
        const llama_memory_t memory = llama_get_memory(ctx);
        if (memory == nullptr || inside) {
            return run();
        }
        const Inside guard(*this);
        evaluation.channels().reserve(std::max(llama_n_threads(ctx), llama_n_threads_batch(ctx)));
        forget_unknown();
        if (kinds != nullptr) {
            sequences.note(memory, rows);
            require_no_gaps();
        } else {
            kinds = sequences.classify(memory, rows, fed, settings.warm_up_index);
            repeat_skipped(ctx);
        }
        for (const Sequences::Part & part : sequences.parts()) {
            if (part.next == 0) {  // another text, whose channels are its own
                evaluation.channels().sequences().restart(part.seq);
            }
        }
        const Sequences::Rows known  = sequences.known_of(rows, kinds, settings, key);
        llama_batch           placed = rows;
        placed.pos                   = sequences.positions();
        const int32_t status         = evaluate(ctx, placed, known, run, [&] {
            return std::all_of(sequences.parts().begin(), sequences.parts().end(),
                               [&](const Sequences::Part & part) { return go_back(ctx, part.seq, part.next); });
        });
        if (status == 0) {
            sequences.commit(rows, { known.kinds, evaluation.skipped_rows(), evaluation.trips() }, key);
        }
        return status;
    }

    // run() evaluates these rows, and does so again, once undo() has taken them out of the memory, where their graph turned
    // out to be new.
    template <typename Run, typename Undo>
    int32_t evaluate(llama_context * ctx, const llama_batch & rows, const Sequences::Rows & known, Run run, Undo undo) {
        for (int attempt = 0; attempt < k_max_attempts; ++attempt) {
            evaluation.begin_decode(rows, known);
            const int32_t status = compute(run, rows, known.kinds);
            const bool    again  = evaluation.end_decode(status == 0 && !callback.failed());
            callback.rethrow();
            if (!again) {
                return status;
            }
            llama_synchronize(
                ctx);  // llama.cpp counts what it computed at each synchronisation: this is another decode
            if (!undo()) {
                throw Unsupported("the graph of this model changed and its memory can't go back to repeat the tokens");
            }
        }
        throw Unsupported("the graph of this model changes from one evaluation to the next");
    }

    // What was decoded by llama_decode itself is no part of the account.
    void forget_unknown() {
        if (hook.attached() ? hook.take_unknown_decode() : evaluation.take_unknown_decode()) {
            sequences.replaced(-1);
        }
    }

    llama_pos first_to_repeat(llama_seq_id seq, llama_pos end) const {
        return settings.every_row ? sequences.first_of_others(seq, end, key)
                                  : sequences.first_to_repeat(seq, end, reuse == Reuse::full, key);
    }

    // Computes again what the running batch must not build on: its prompts, of what skipped; all of it, of what is not there.
    void repeat_skipped(llama_context * ctx) {
        for (const Sequences::Part & part : sequences.parts()) {
            const llama_pos from =
                part.generated ? sequences.first_gap(part.seq, part.next, key) : first_to_repeat(part.seq, part.next);
            if (from < part.next) {
                repeat(ctx, part.seq, from, part.next);
                sequences.repeated(part.seq, from, evaluation.left_of_prompts(), key);
            }
        }
    }

    void require_no_gaps() const {
        for (const Sequences::Part & part : sequences.parts()) {
            const llama_pos from = sequences.first_gap(part.seq, part.next, key);
            if (from < part.next) {
                throw std::invalid_argument(
                    "positions " + std::to_string(from) + " to " + std::to_string(part.next - 1) + " of sequence " +
                    std::to_string(part.seq) +
                    " were computed without keys and values that these settings need; decode them again first");
            }
        }
    }

    // Decodes positions [from, end) of a sequence as a prompt; more of them where the memory of its sliding windows has gone
    // on. Where that can't be done, nothing has been.
    void repeat(llama_context * ctx, llama_seq_id seq, llama_pos from, llama_pos end) {
        const llama_pos     begin = window_is_there(ctx, seq, from) ? from : 0;
        const llama_token * found = sequences.tokens(seq, begin, end);
        if (found == nullptr || !go_back(ctx, seq, begin)) {
            throw Unsupported("positions " + std::to_string(begin) + " to " + std::to_string(end - 1) +
                              " of sequence " + std::to_string(seq) +
                              " were computed with skipping and can't be computed again: " +
                              (found == nullptr ? "their tokens are not known" : "the model's memory can't go back"));
        }
        Batch batch;
        for (llama_pos pos = begin; pos < end; ++pos) {
            batch.add(found[pos - begin], pos, seq, false);
            if (batch.n_rows() < int32_t(llama_n_batch(ctx)) && pos + 1 < end) {
                continue;
            }
            const llama_batch rows   = batch.rows();
            const llama_pos   first  = rows.pos[0];
            const int32_t     status = evaluate(
                ctx, rows, {}, [&] { return llama_decode(ctx, rows); }, [&] { return go_back(ctx, seq, first); });
            if (status != 0) {
                throw DecodeError(status);
            }
            batch.clear();
        }
    }
};

Controller::Controller() : impl_(std::make_unique<Impl>()) {}
Controller::~Controller() = default;

void Controller::attach(llama_context_params & params) {
    require_llama_version();
    impl_->callback.attach(params);
}

void Controller::probe(llama_context * ctx) {
    try {
        impl_->probe(ctx, false);
    } catch (const Unsupported & unsupported) {
        impl_->why_dense = unsupported.what();
        throw;
    }
}

void Controller::hook(llama_context * ctx) {
    require_llama_version();
    if (llama_n_seq_max(ctx) > 1) {
        throw Unsupported("hook: several sequences, of which some may skip while others don't");
    }
    try {
        impl_->probe(ctx, true);
    } catch (...) {
        impl_->hook.detach();
        throw;
    }
}

bool Controller::hooked() const {
    return impl_->hook.attached();
}

void Controller::set_config(const Config & config) {
    impl_->set(config, impl_->resolved(config));
}

std::shared_ptr<const Controller::Prepared> Controller::prepare(const Config & config) const {
    const Settings resolved = impl_->resolved(config);
    if (resolved.leaves_channels_out()) {
        impl_->weights_of(resolved.channels);  // or there are none
    }
    if (!impl_->evaluation.channels().has(impl_->map, resolved.channels)) {
        throw Unsupported("policy 'channels': not all weights that it wants are stored by channel; that takes a while, "
                          "and is done where the "
                          "model has such settings to begin with");
    }
    return std::make_shared<const Prepared>(impl_->prepared(config, resolved));
}

void Controller::use(const Prepared & settings) {
    if (settings.n_probes != impl_->n_probes) {
        throw std::invalid_argument("use: the settings were made before the context was probed");
    }
    impl_->use(settings, false);
    impl_->recorder.trust();
}

void Controller::write_channels(const std::string & path, Tensors tensors, int n_threads,
                                const std::function<bool(double done)> & progress) const {
    if (impl_->skippable.empty()) {
        throw Unsupported("write_channels: " + impl_->why_dense);
    }
    Config config;
    config.policy  = Policy::channels;
    config.tensors = tensors;

    WeightRows                   rows(impl_->weights_source.model_path, impl_->vectors);
    std::vector<ChannelFilePart> parts;
    for (const ggml_tensor * weight :
         impl_->weights_of(resolve(config, impl_->skippable, impl_->no_attention).channels)) {
        parts.push_back({ weight->name, ChannelLayout(weight->type, weight->ne[0], weight->ne[1]), rows.of(weight),
                          weight->ne[2] });
    }
    write_channel_file(path, impl_->fingerprint, parts, n_threads > 0 ? n_threads : n_cores(), progress);
}

void Controller::set_profile(const Profile & profile) {
    if (profile.model != impl_->fingerprint) {
        throw ProfileMismatch("profile " + profile.path + ": it is for model '" + profile.model + "', but this is '" +
                              impl_->fingerprint + "'");
    }
    try {
        set_config(profile.config);
        impl_->recorder.trust();
    } catch (const std::invalid_argument & error) {
        throw std::invalid_argument("profile " + profile.path + ": " + error.what());
    }
}

int32_t Controller::decode(llama_context * ctx, const llama_batch & batch, Fed fed) {
    return impl_->decode(ctx, batch, [&] { return llama_decode(ctx, batch); }, fed);
}

int32_t Controller::decode(llama_context * ctx, const llama_batch & rows, int32_t (*run)(void * data), void * data,
                           Fed fed) {
    return impl_->decode(ctx, rows, [&] { return run(data); }, fed);
}

int32_t Controller::decode(llama_context * ctx, const llama_batch & batch, const RowKind * kinds) {
    return impl_->decode(ctx, batch, [&] { return llama_decode(ctx, batch); }, Fed::recognise, kinds);
}

void Controller::restore(llama_seq_id seq, const std::string & account) {
    if (!impl_->sequences.load(seq, account)) {
        throw std::invalid_argument("restore: these are not the bytes of an account of a sequence");
    }
}

llama_pos Controller::n_held(llama_seq_id seq, const llama_token * tokens, size_t n_tokens, size_t n_prompt) {
    impl_->forget_unknown();
    const Settings & settings = impl_->settings;
    const llama_pos  prompt   = llama_pos(n_prompt);
    const llama_pos  n =
        impl_->sequences.n_held(seq, tokens, llama_pos(n_tokens), prompt, settings.every_row, impl_->key);
    // Thresholds are those of this text where its first generated tokens told them, all of them.
    const llama_pos told   = prompt + settings.n_observed();
    const bool      is_own = n >= told && impl_->evaluation.channels().sequences().counted_to(seq) == told - 1;
    return settings.n_observed() == 0 || is_own ? n : std::min(n, prompt);
}

llama_pos Controller::first_to_repeat(llama_seq_id seq, llama_pos end) const {
    return impl_->first_to_repeat(seq, end);
}

// ---- handed on ----

int Controller::n_layer() const {
    return impl_->n_layer;
}
const std::vector<uint8_t> & Controller::skippable() const {
    return impl_->skippable;
}
const std::vector<Block> & Controller::blocks() const {
    return impl_->blocks;
}
std::vector<LayerInput> Controller::channel_inputs() const {
    std::vector<LayerInput> inputs;
    for (size_t i = 0; i < impl_->map.inputs.size(); ++i) {
        if (!impl_->map.inputs[i].weights.empty()) {
            inputs.push_back(described(impl_->map.inputs[i], int(i)));
        }
    }
    return inputs;
}
uint64_t Controller::weights_bytes() const {
    return impl_->store == nullptr ? 0 : impl_->store->bytes();
}
uint64_t Controller::mapped_weights_bytes() const {
    return impl_->store == nullptr ? 0 : impl_->store->mapped_bytes();
}
void Controller::release_weights() {
    impl_->evaluation.channels().set_model(impl_->map, {}, nullptr);
    impl_->store.reset();
}
std::vector<std::string> Controller::weights_notes() const {
    return impl_->store == nullptr ? std::vector<std::string>() : impl_->store->notes();
}
std::string Controller::fingerprint() const {
    return impl_->fingerprint;
}
const Config & Controller::config() const {
    return impl_->config;
}
const Settings & Controller::settings() const {
    return impl_->settings;
}

std::vector<Controller::InputBytes> Controller::input_bytes() const {
    std::vector<InputBytes> bytes;
    if (impl_->settings.leaves_channels_out()) {
        for (const Recorder::Channels & channels : impl_->recorder.channels()) {
            bytes.push_back(channels.n == 0 ? InputBytes() : InputBytes{ channels.bytes_least, channels.bytes });
        }
    }
    return bytes;
}
void Controller::set_weights_source(WeightsSource source) {
    impl_->weights_source = std::move(source);
}
void Controller::set_reuse(Reuse reuse) {
    impl_->reuse = reuse;
}
void Controller::copied(llama_seq_id from, llama_seq_id to) {
    impl_->sequences.copied(from, to);
    impl_->evaluation.channels().sequences().copied(from, to);
}
void Controller::replaced(llama_seq_id seq) {
    impl_->sequences.replaced(seq);
    impl_->evaluation.channels().sequences().restart(seq);
}
void Controller::count_from_here(llama_seq_id seq) {
    impl_->sequences.count_from_here(seq);
    impl_->evaluation.channels().sequences().restart(seq);
}
void Controller::outputs_unread() {
    impl_->sequences.outputs_unread();
}
std::string Controller::account(llama_seq_id seq) const {
    return impl_->sequences.save(seq);
}
void Controller::shifted(llama_seq_id seq, llama_pos p0, llama_pos p1, llama_pos delta) {
    impl_->sequences.shifted(seq, p0, p1, delta);
}

Stats Controller::stats() const {
    return impl_->recorder.stats();
}
void Controller::reset_stats() {
    impl_->recorder.reset_stats();
}
RowStats Controller::row_stats(int32_t row) const {
    return impl_->evaluation.row_stats(row);
}
std::optional<std::string> Controller::take_notice() {
    return impl_->recorder.take_notice();
}
void Controller::start_trace(bool reaches, bool layers) {
    impl_->recorder.start_trace(reaches, layers);
}
Trace Controller::stop_trace() {
    return impl_->recorder.stop_trace();
}

}  // namespace ffnskip
