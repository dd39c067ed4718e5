// The account of a context's memory, sequence by sequence: which tokens were generated, and which positions hold what a
// token that skipped left there. Made from nothing but the batches that are decoded and where the memory ends.
//
// A generated token was sampled from the output of the token before it. So rows of a sequence are generated if they stand
// right behind what the memory holds of it, and the row decoded before them had its output requested, and read where that
// can be seen. One row is a token; a few with all their outputs requested are a token and a draft to verify. A prompt cut
// into chunks, down to one token, has no output but at its end.
#pragma once

#include "decisions.h"
#include "ffnskip/config.h"
#include "ffnskip/rows.h"
#include "layer_budget.h"

#include <llama.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace ffnskip {

// What a row left out that its sequence's memory holds the traces of.
enum class Left : uint8_t {
    nothing,
    skipped,  // some block or channel: keys and values further on are others than a row in full writes
    gaps,     // keys and values themselves
};

class Sequences {
public:
    // Rows of one sequence that come with a token are taken for a draft up to this many; more are a text to be scored.
    static constexpr int32_t k_max_draft = 64;

    // Whose decision a row follows: that of a row of the batch, its own where it is checked; of a token decoded before
    // where `row` is negative.
    struct Decider {
        int32_t row        = -1;
        int32_t trip_layer = -1;  // of the token decoded before
    };

    // What the running batch has of a sequence.
    struct Part {
        llama_seq_id seq       = -1;
        int32_t      n_rows    = 0;
        llama_pos    next      = 0;  // position after what the memory holds
        llama_pos    first     = 0;  // position of its first row
        llama_pos    last      = 0;
        bool         outputs   = true;   // of every row
        bool         output    = false;  // of the last row
        bool         follows   = true;   // each row the one before it
        bool         shared    = false;  // some row belongs to another sequence as well
        bool         repeats   = true;   // each row but one behind them is what was decoded there before
        bool         generated = false;
        int64_t      n_before  = 0;  // generated tokens before its first row

        // As far as deciders() has come:
        int64_t token      = 0;  // generated tokens before the row
        int64_t next_check = 0;  // the token that is checked next, counted so
        Decider decider;         // of those up to there

        int32_t n_left_out = 0;  // layers that rows so far have left out
    };

    // The kind of each row of a batch that is about to be decoded, valid until the next call; null if all are prompt
    // tokens. Reads the memory as it is before the decode.
    const RowKind * classify(llama_memory_t memory, const llama_batch & rows, Fed fed, int warm_up_index);
    // The same for a caller who names the kinds.
    void note(llama_memory_t memory, const llama_batch & rows);

    const std::vector<Part> & parts() const { return parts_; }
    // Of its rows, [n_tokens], whether it names them or not.
    llama_pos * positions() { return positions_.data(); }

    // What is known of each row of a batch before it is decoded, [n_tokens].
    struct Rows {
        const RowKind * kinds      = nullptr;  // null: all prompt, and nothing is counted; they need no tokens then
        const Decider * deciders   = nullptr;  // of those that may skip; null: each decides for itself
        const int32_t * n_left_out = nullptr;  // layers that the row leaves out; null but for policy skip_decode
    };
    // Of that batch, with what rows take over from their sequences. `key` of the settings. Valid until the next call.
    // Throws Unsupported where rows without tokens would have to leave layers out.
    Rows known_of(const llama_batch & rows, const RowKind * kinds, const Settings & settings, uint64_t key);

    // What became of the rows of that batch, all [n_tokens].
    struct Decoded {
        const RowKind *              kinds = nullptr;  // null: all prompt
        const std::vector<Left> *    left  = nullptr;  // null: nothing
        const std::vector<int32_t> * trips = nullptr;  // layer in which it tripped, -1 if it did not
    };
    // They have been decoded, under settings of this `key`.
    void commit(const llama_batch & rows, const Decoded & decoded, uint64_t key);

    // The outputs of the last decode were not looked at: what follows was not sampled from them.
    void outputs_unread();

    // The first of the positions below `end` that a skipping token filled, and that a prompt may not build on: all such
    // if `full`, else those of settings with another key. `end` where there is none.
    llama_pos first_to_repeat(llama_seq_id seq, llama_pos end, bool full, uint64_t key) const;
    // The same for settings that leave something out of every row, prompts too: what ran in full was not theirs either, and
    // is decoded again where its tokens are known.
    llama_pos first_of_others(llama_seq_id seq, llama_pos end, uint64_t key) const;
    // The first of the positions below `end` that settings with another key left keys and values out of, which no row may
    // attend to. `end` where there is none.
    llama_pos first_gap(llama_seq_id seq, llama_pos end, uint64_t key) const;
    // Tokens of positions [from, to); null where they are not known.
    const llama_token * tokens(llama_seq_id seq, llama_pos from, llama_pos to) const;
    // How many of `n_tokens` tokens from position 0 on the sequence holds as they would come out under settings of this
    // `key` now: a prompt up to token n_prompt, and generated from there.
    llama_pos n_held(llama_seq_id seq, const llama_token * tokens, llama_pos n_tokens, llama_pos n_prompt,
                     bool every_row, uint64_t key) const;
    // Positions [from, end) of `seq` were decoded again, and left this out; all before ran in full.
    void repeated(llama_seq_id seq, llama_pos from, Left left, uint64_t key);

    void copied(llama_seq_id from, llama_seq_id to);
    void shifted(llama_seq_id seq, llama_pos p0, llama_pos p1, llama_pos delta);
    void replaced(llama_seq_id seq);  // by what is not known here; all if negative
    void count_from_here(llama_seq_id seq);

    // The account of a sequence as bytes, to be kept with a saved state of it, and back.
    std::string save(llama_seq_id seq) const;
    bool        load(llama_seq_id seq, const std::string & account);

private:
    static constexpr llama_pos k_none = INT32_MAX;

    // What save() writes as it is, before the tokens.
    struct Counts {
        llama_pos last          = -1;      // position of the row decoded last
        llama_pos first_skipped = k_none;  // position of the first token that skipped
        llama_pos first_gap     = k_none;  // of the first one that left keys and values out
        llama_pos first_token   = 0;       // position of tokens[0]
        int32_t   output        = 0;       // 1 where the output of the row decoded last was requested
        int64_t   generated     = 0;       // tokens generated up to there since the prompt ended
        int64_t   n_verified    = 0;       // of these, rows of the last decode before `last` with an output too
        uint64_t  key           = 0;       // of the settings that tokens skipped under; 0: of several
        uint64_t  gap_key       = 0;       // of those that left keys and values out
        uint64_t  n_saved       = 0;       // tokens that were saved with it
        uint64_t  decisions_key = 0;       // of decisions that were saved with it,
        uint64_t  n_decisions   = 0;       // so many
        uint64_t  n_steps       = 0;       // of its budget of layers that were saved with it
    };

    // A sequence that is one text: a prompt, and generated tokens that are counted from where it ends.
    struct Whole {
        bool      is       = false;
        llama_pos n_prompt = 0;
        uint64_t  key      = 0;  // of the settings that the generated ones were decoded under, where there are any
    };

    struct Sequence : Counts {
        Whole                    whole;      // not saved
        std::vector<llama_token> tokens;     // up to `last`
        Decisions                decisions;  // of the tokens generated
        LayerBudget              budget;

        // The next token generated is the first.
        void begin_count() {
            generated = 0;
            decisions.cut(0);
        }
        llama_pos end() const { return first_token + llama_pos(tokens.size()); }
        void      place(llama_pos pos, llama_token token);
        void      leave(llama_pos pos, Left left, uint64_t of);
        void      begin_rows(const Part & part);
        void      add_row(llama_pos pos, bool prompt, const Part & part, uint64_t of);
    };

    Part &           part_of(llama_memory_t memory, llama_seq_id seq);
    Part *           part_of(llama_seq_id seq);
    Sequence &       grown(llama_seq_id seq);
    const Sequence * known(llama_seq_id seq) const;
    Sequence *       known(llama_seq_id seq) { return const_cast<Sequence *>(std::as_const(*this).known(seq)); }
    bool             repeats(llama_seq_id seq, llama_pos pos, llama_token token) const;
    bool             is_generated(const Part & part, Fed fed) const;
    void             find_deciders(const llama_batch & rows, const RowKind * kinds, int interval, uint64_t key);
    void             find_budgets(const llama_batch & rows, const RowKind * kinds, const Settings & settings);
    bool             is_drafted(const Part & part) const;

    std::vector<Sequence>     sequences_;  // by id, grows with the ids seen
    std::vector<Part>         parts_;
    std::vector<llama_pos>    positions_;  // [n_tokens] of the running batch, whether it names them or not
    std::vector<llama_seq_id> committed_;  // sequences of the last decode
    std::vector<RowKind>      kinds_;
    std::vector<Decider>      deciders_;
    std::vector<int32_t>      n_left_out_;  // of the running batch, [n_tokens]; empty but for policy skip_decode
    int32_t                   most_left_out_ = 0;
};

}  // namespace ffnskip
