// What the client programs have in common: programs on libllama as anybody writes them, which know nothing of ffnskip.
#pragma once

#include <llama.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

struct Free {
    void operator()(llama_model * model) const { llama_model_free(model); }
    void operator()(llama_context * ctx) const { llama_free(ctx); }
};

using Model   = std::unique_ptr<llama_model, Free>;
using Context = std::unique_ptr<llama_context, Free>;

inline void require(bool condition, const char * what) {
    if (!condition) {
        std::fprintf(stderr, "%s\n", what);
        std::exit(1);
    }
}

inline Model load(const char * path) {
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    llama_backend_init();
    Model model(llama_model_load_from_file(path, llama_model_default_params()));
    require(model != nullptr, "no model");
    return model;
}

// All in float32 and in one thread, so that results do not depend on how rows are batched but for the order of sums.
inline llama_context_params exact_params() {
    llama_context_params params = llama_context_default_params();
    params.n_ctx                = 4096;
    params.type_k               = GGML_TYPE_F32;
    params.type_v               = GGML_TYPE_F32;
    params.flash_attn_type      = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    params.n_threads            = 1;
    params.n_threads_batch      = 1;
    return params;
}

inline Context make_context(const Model & model, const llama_context_params & params) {
    Context ctx(llama_init_from_model(model.get(), params));
    require(ctx != nullptr, "no context");
    return ctx;
}

// The prompt of sequence `seq`: 5 to 11 tokens that differ from one sequence to the next.
inline std::vector<llama_token> prompt_of(const Model & model, int seq) {
    const int                n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(model.get()));
    std::vector<llama_token> tokens(5 + size_t(seq) % 7);
    for (size_t i = 0; i < tokens.size(); ++i) {
        tokens[i] = llama_token((7919 * (seq + 1) + 104729 * int(i)) % std::min(n_vocab, 256));
    }
    return tokens;
}

// A row more; returns its number.
inline int32_t add_row(llama_batch & batch, llama_seq_id seq, llama_pos pos, llama_token token, bool output) {
    const int32_t row    = batch.n_tokens++;
    batch.token[row]     = token;
    batch.pos[row]       = pos;
    batch.n_seq_id[row]  = 1;
    batch.seq_id[row][0] = seq;
    batch.logits[row]    = output;
    return row;
}

// A sequence that is decoded greedily, together with others.
struct Sequence {
    llama_seq_id             seq = -1;  // -1: none at the moment
    llama_pos                pos = 0;
    int32_t                  row = -1;  // of the batch, whose output is its next token
    std::vector<llama_token> fed;       // next
    std::vector<llama_token> tokens;
};

inline llama_token greedy(const Model & model, llama_context * ctx, int32_t row) {
    const float * logits = llama_get_logits_ith(ctx, row);
    return llama_token(std::max_element(logits, logits + llama_vocab_n_tokens(llama_model_get_vocab(model.get()))) -
                       logits);
}

// Decodes what is fed to the sequences that `takes_part` says, and gives each of them its next token, which is fed next; then
// calls `done` with it. Nothing where none takes part.
template <typename TakesPart, typename Done>
void decode_together(const Model & model, llama_context * ctx, std::vector<Sequence> & sequences, TakesPart takes_part,
                     Done done) {
    llama_batch             batch = llama_batch_init(256, 0, 1);
    std::vector<Sequence *> all;
    for (Sequence & sequence : sequences) {
        if (!takes_part(sequence)) {
            continue;
        }
        all.push_back(&sequence);
        for (size_t i = 0; i < sequence.fed.size(); ++i) {
            const bool output = i + 1 == sequence.fed.size();
            sequence.row      = add_row(batch, sequence.seq, sequence.pos++, sequence.fed[i], output);
        }
    }
    require(all.empty() || llama_decode(ctx, batch) == 0, "decode failed");
    for (Sequence * sequence : all) {
        sequence->tokens.push_back(greedy(model, ctx, sequence->row));
        sequence->fed.assign(1, sequence->tokens.back());
        done(*sequence);
    }
    llama_batch_free(batch);
}

inline void print_tokens(const std::vector<llama_token> & tokens) {
    for (const llama_token token : tokens) {
        std::printf("%d ", token);
    }
    std::printf("\n");
}
