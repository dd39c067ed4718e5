// Skips blocks in an unmodified llama.cpp context.
//
//     ffnskip::Controller controller;
//     llama_context_params params = llama_context_default_params();
//     controller.attach(params);                               // before the context is made
//     llama_context * ctx = llama_init_from_model(model, params);
//     controller.probe(ctx);                                   // learns where the blocks are
//     controller.set_config({});                               // FFN-SkipLLM with the paper's values
//     controller.decode(ctx, batch);                           // in place of llama_decode, prompts and all
//
// Prompt tokens and the first warm_up_index generated tokens of each sequence run in full. Which tokens are generated
// is seen from the batches: a token that stands right behind the one whose output was requested last, alone or with a
// draft of up to 63 tokens whose outputs are all requested. Anything else is a prompt: it runs in full and begins the
// sequence's count anew. A caller who knows better says so (Fed). Sequences may be removed, cut short and used again at
// will; after llama_memory_seq_cp call copied(), after llama_memory_seq_add call shifted(), or the next token of that
// sequence counts as a prompt.
//
// A context that drafts for another one (Fed::draft) is fed each token that it drafts, takes them back, and is fed the rows
// in which the other one verified them. There a row that comes alone is generated, and so are several which repeat what
// was drafted at their positions, and one more; outputs tell nothing. Other rows are a prompt.
//
// What tokens that skipped left in the memory is known here for every sequence. A prompt builds on it (Reuse::all), or it
// is computed again in full first (Reuse::full). What other settings skipped is always computed again, so that a text
// does not depend on what ran before it.
//
// One controller serves one context, must outlive it, and is used by one thread at a time (the one that decodes).
// The way it works: docs/how-it-works.md.
#pragma once

#include "ffnskip/blocks.h"
#include "ffnskip/config.h"
#include "ffnskip/errors.h"
#include "ffnskip/export.h"
#include "ffnskip/profile.h"
#include "ffnskip/rows.h"
#include "ffnskip/stats.h"

#include <llama.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>

namespace ffnskip FFNSKIP_API {

// Where policy `channels` takes a model's weights from, and what it may use for that.
struct WeightsSource {
    std::string model_path;     // the model's GGUF file, or the first of several; empty: not known
    int         n_threads = 0;  // 0: one for each core
    // Told the part that is done, 0 to 1, by the thread that calls set_config(); false stops, which throws Interrupted.
    std::function<bool(double done)> progress;
};

class Controller {
public:
    Controller();
    ~Controller();
    Controller(const Controller &)             = delete;
    Controller & operator=(const Controller &) = delete;

    // Sets cb_eval and cb_eval_user_data of `params`. A callback that is there already goes on being asked and shown
    // every node, after ours: what it sees of a skipped block is memory that was not computed. Throws Unsupported where
    // the llama.cpp in this process is not the one this was built for (require_llama_version()), and std::invalid_argument
    // where the controller is attached already, to parameters with another callback: it serves one context.
    void attach(llama_context_params & params);

    // Learns the blocks of the context's model from a decode in which nothing is computed. The context's memory
    // must be empty (std::invalid_argument names the sequence in use); it is empty again afterwards. Throws Unsupported,
    // naming the architecture and what was found.
    void probe(llama_context * ctx);

    // In place of attach() and probe(), for a context that was made without a callback, and where all that is to be skipped
    // is static (Config::is_static()): blocks are left out of its graphs when libllama builds them, so that decoding is
    // llama.cpp's own. The rows of a batch must then all skip, or all run in full; decode() throws Unsupported, having
    // decoded nothing, where they don't. Outputs of the context take four times the memory.
    // Throws Unsupported where this llama.cpp, a device or the model does not allow it, for contexts of several sequences,
    // and what probe() throws. The context then runs dense; or one with the callback takes its place.
    void hook(llama_context * ctx);
    // Whether the context decodes so.
    bool hooked() const;

    // Layers of the model; 0 before probe().
    int n_layer() const;
    // [n_layer] 1 where the layer has an FFN block that can be skipped; empty before probe().
    const std::vector<uint8_t> & skippable() const;

    // Attention and FFN blocks of the layers that have them, in the order they run in. Filled by probe(), also where it
    // throws Unsupported.
    const std::vector<Block> & blocks() const;
    // What the matrices of each layer read whose channels policy `channels` can or can't leave out, layer by layer. Empty
    // before a successful probe().
    std::vector<LayerInput> channel_inputs() const;
    // What tells this model from others, whatever type its matrices are quantised to: architecture, size, and a hash of
    // the vectors of its blocks, which stay in float32. Empty before probe().
    std::string fingerprint() const;

    // Bytes that the products read which read an input, [n_layer, 4], by policy `channels` as it is set: 0 where none of
    // its channels may be left out. Empty with other policies.
    struct InputBytes {
        uint64_t least = 0;  // with no channel kept
        uint64_t all   = 0;
    };
    std::vector<InputBytes> input_bytes() const;

    // For policy `channels`, before the settings that want it.
    void set_weights_source(WeightsSource source);

    // Takes effect with the next decode. Throws std::invalid_argument, and Unsupported before a successful probe()
    // for any policy but dense. Policy `channels` copies weights of the model into an order of its own, which takes a while
    // and as much memory as they have, once for all contexts of the model; Unsupported says why that can't be.
    void set_config(const Config & config);
    // Writes these copies into a file, from its beginning to its end, of all weights that `tensors` names. As
    // MODEL.channels.gguf beside the model's file MODEL.gguf it is mapped in place of making copies: no process has to wait
    // for them, nor to find memory for them. n_threads and progress are as in WeightsSource. Throws Unsupported before a
    // successful probe() and where the model has no such weights, and std::system_error where the file can't be written.
    void write_channels(const std::string & path, Tensors tensors, int n_threads,
                        const std::function<bool(double done)> & progress) const;
    // Memory taken by the weights by channel, in bytes, which all contexts of the model share; 0 before set_config() wanted
    // them.
    uint64_t weights_bytes() const;
    // Bytes of them that are mapped from MODEL.channels.gguf, and take no memory of their own.
    uint64_t mapped_weights_bytes() const;
    // Gives them up, once the context is freed; a controller that lives on keeps their memory otherwise.
    void release_weights();
    // Why files of copies that were found are not used, one line for each.
    std::vector<std::string> weights_notes() const;
    // The profile's config. Throws ProfileMismatch (the file and both fingerprints) for another model's profile, and
    // std::invalid_argument, naming the file, where its config does not fit.
    void set_profile(const Profile & profile);
    // Settings for this model, made once, to be used in turns. As set_config() takes them, but for policy `channels`: of the
    // inputs that it wants, set_config() has to have made the copies before, or Unsupported is thrown. From any thread, while
    // none is in probe(), hook(), set_config() or set_profile().
    class Prepared;
    std::shared_ptr<const Prepared> prepare(const Config & config) const;
    // They take effect with the next decode, as those of set_config() do, and that takes no time. Sequences that take turns
    // may each have settings of their own; where one goes on under others than it was generated under, count_from_here()
    // says that it begins anew. Throws std::invalid_argument where they were made before the last probe().
    void use(const Prepared & settings);

    const Config & config() const;
    // The config as it applies to this model.
    const Settings & settings() const;

    // Default: Reuse::all.
    void set_reuse(Reuse reuse);

    // llama_decode with skipping; returns its status. The outcome of a row does not depend on the rest of the batch.
    // Throws Unsupported where llama.cpp does something this version does not know (the tokens have been decoded then),
    // and where what has to be computed again can't be: its tokens are not known, or the memory can't go back (nothing has
    // been decoded then); DecodeError where llama_decode fails at that.
    int32_t decode(llama_context * ctx, const llama_batch & batch, Fed fed = Fed::recognise);
    // The same around a call of the caller's own, such as llama_process, which returns llama_decode's status; `rows`
    // says what is in its batch. What `run` throws is passed on. It is called again where the batch has to be decoded again,
    // and not at all where nothing has been decoded.
    int32_t decode(llama_context * ctx, const llama_batch & rows, int32_t (*run)(void * data), void * data,
                   Fed fed = Fed::recognise);
    // The same for a caller who names the kind of each row: `kinds` has one entry per token. Nothing is computed again;
    // std::invalid_argument where the memory holds rows without the keys and values that these settings need.
    int32_t decode(llama_context * ctx, const llama_batch & batch, const RowKind * kinds);

    // Sequence `to` is now what `from` is: llama_memory_seq_cp of its positions from the first one on.
    void copied(llama_seq_id from, llama_seq_id to);
    // Positions [p0, p1) of `seq` moved by `delta`, as llama_memory_seq_add takes them. Where they moved down, what stood in
    // their way was removed before.
    void shifted(llama_seq_id seq, llama_pos p0, llama_pos p1, llama_pos delta);
    // `seq` was loaded from elsewhere (a saved state, say); all of them if negative.
    void replaced(llama_seq_id seq);
    // What is known of `seq`, to be kept with a saved state of it; and back, after the state was loaded: the sequence goes
    // on as if it had never left. restore() throws std::invalid_argument where the bytes are none of account()'s.
    std::string account(llama_seq_id seq) const;
    void        restore(llama_seq_id seq, const std::string & account);
    // All that the memory holds of `seq` is a prompt: the next generated token is its first.
    void count_from_here(llama_seq_id seq);
    // Nobody looked at the outputs of the last decode: what follows was not sampled from them.
    void outputs_unread();
    // How many of `n_tokens` tokens from position 0 on the account of `seq` has as they would come out now: a prompt up to
    // token n_prompt, and generated from there. The memory may have fewer.
    llama_pos n_held(llama_seq_id seq, const llama_token * tokens, size_t n_tokens, size_t n_prompt);
    // A prompt at position `end` of `seq` would have positions from here to there computed again; `end`: none.
    llama_pos first_to_repeat(llama_seq_id seq, llama_pos end) const;

    Stats stats() const;
    void  reset_stats();
    // What row `row` of the last decode left out, of a prompt too, until the next one. Throws std::invalid_argument where it
    // had no such row, or failed, and for a context without the callback.
    RowStats row_stats(int32_t row) const;

    // What the user should be told of these settings, at most once: that nearly every token trips in the first layer
    // that is checked, so that the threshold tells nothing. Settings of a profile are not judged.
    std::optional<std::string> take_notice();

    // Records similarity, skipped blocks and channels kept of every generated token from start_trace() to stop_trace(), and,
    // where asked for, how far the channels reach, and the similarity of what goes into a layer and what comes out, which
    // take longer.
    void  start_trace(bool reaches = false, bool layers = false);
    Trace stop_trace();

private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace ffnskip FFNSKIP_API
