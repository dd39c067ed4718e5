// Sequences of a llama.cpp context, decoded through a controller or without one.
//
//     ffnskip::Session session(ctx, &controller);
//     session.prompt(tokens.data(), tokens.size());
//     llama_token token = llama_sampler_sample(sampler, ctx, -1);
//     while (!llama_vocab_is_eog(vocab, token)) {
//         token = session.step(sampler, token);
//     }
//
// Where a sequence ends is asked of the context's memory, and what its tokens are of the controller: a session keeps no
// account of its own, so that it may be used beside anything else that decodes through the same controller. A token costs
// no allocation. What fails to decode throws DecodeError, what the controller throws passes through; the sequences are then
// what llama_decode left of them.
#pragma once

#include "ffnskip/controller.h"
#include "ffnskip/export.h"
#include "ffnskip/rows.h"

#include <llama.h>

#include <cstdint>
#include <vector>

namespace ffnskip FFNSKIP_API {

class Session {
public:
    // `controller`, where there is one, has been attached to the context and has probed it. Both outlive the session.
    explicit Session(llama_context * ctx, Controller * controller = nullptr);

    llama_context * context() const { return ctx_; }
    Controller *    controller() const { return controller_; }

    // Sequences that the context has room for.
    int32_t n_sequences() const { return int32_t(next_.size()); }
    // Tokens that a batch takes, and a sequence.
    int32_t n_batch() const { return int32_t(llama_n_batch(ctx_)); }
    int32_t n_ctx() const { return int32_t(llama_n_ctx_seq(ctx_)); }
    // Logits of an output.
    int32_t n_vocab() const { return llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(ctx_))); }
    // Position after the last token of a sequence.
    llama_pos n_used(llama_seq_id seq = 0) const;
    bool      has_room(size_t n_tokens, llama_seq_id seq = 0) const;

    // Tokens of a prompt, in full, or `fed` otherwise; the output of the last one can be sampled from.
    void prompt(const llama_token * tokens, size_t n_tokens, llama_seq_id seq = 0, Fed fed = Fed::prompt);
    // A generated token, likewise.
    void generated(llama_token token, llama_seq_id seq = 0);
    // A turn of the generation loop: that, and the token sampled after it.
    llama_token step(llama_sampler * sampler, llama_token token, llama_seq_id seq = 0);

    // A sequence that is being generated.
    struct Turn {
        llama_seq_id    seq;
        llama_token     token;  // sampled last, and not decoded yet
        llama_sampler * sampler;
    };
    // A turn of each of several, n_batch at most, in one batch. next: [n_turns] the token sampled after it. Sequences may
    // begin and end between two calls.
    void step(const std::vector<Turn> & turns, llama_token * next);

    // Batches of the caller's own making, for several sequences at once. add() takes a token after what the sequence holds
    // and what was added of it; decode() decodes what was added, n_batch at most, which gives row i the output i of the
    // context where one was asked for.
    void    add(llama_token token, llama_seq_id seq, bool output);
    int32_t n_rows() const { return is_decoded_ ? 0 : batch_.n_rows(); }
    void    decode(Fed fed = Fed::recognise);
    void    decode(const RowKind * kinds);  // [n_rows]
    void    decode(const llama_batch & rows, Fed fed);

    // Takes position `from` of a sequence and what follows it out of the memory. False where the memory can't, or has
    // forgotten what a token at that position attends to; then nothing is changed.
    bool go_back(llama_pos from, llama_seq_id seq = 0);
    // The same; throws std::runtime_error where it is not possible.
    void cut(llama_pos from, llama_seq_id seq = 0);
    // Sequence `to` becomes what `from` is.
    void copy(llama_seq_id from, llama_seq_id to);
    // Empties the memory.
    void clear();
    // The same, but for what sequence 0 has of a text as it would come out now: a prompt up to token n_prompt, and generated
    // tokens from there. Returns how many of its tokens that is; the last one never is, for its output to be computed.
    size_t keep(const llama_token * tokens, size_t n_tokens, size_t n_prompt);

private:
    llama_context *        ctx_;
    Controller *           controller_;
    Batch                  batch_;
    bool                   is_decoded_ = false;  // the batch has been: the next row begins another
    std::vector<llama_pos> next_;                // [n_seq_max] position after the rows that were added; -1: none were
};

}  // namespace ffnskip FFNSKIP_API
