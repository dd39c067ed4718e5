// Carries out what the rows of a batch want while its graphs are evaluated: asks the rows' policies, edits the nodes of
// blocks, and shows the rows what they wanted to see. Where in a graph it is, the GraphFollower knows.
//
// One decode is one or more evaluations, one per ubatch; nothing announces one but its first node, which reads the
// token embeddings.
#pragma once

#include "buffers.h"
#include "channel_evaluation.h"
#include "comparison.h"
#include "ffnskip/rows.h"
#include "graph_follower.h"
#include "layer_similarity.h"
#include "policy.h"
#include "recorder.h"
#include "sequences.h"
#include "ubatches.h"

#include <llama.h>

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

namespace ffnskip {

class Evaluation {
public:
    Evaluation(const Settings & settings, Recorder & recorder) : settings_(settings), recorder_(recorder) {}

    // A model's graph, the weight that its first node reads, and how the context cuts its batches.
    void set_model(GraphMap map, const ggml_tensor * embedding, Split split, int32_t n_ubatch);

    ChannelEvaluation &       channels() { return channels_; }
    const ChannelEvaluation & channels() const { return channels_; }

    // ---- a decode ----
    // What is known of the rows stays as it is until end_decode().
    void begin_decode(const llama_batch & batch, const Sequences::Rows & known);
    // True if the batch met a graph of unknown structure, which is known now: decode it again.
    // Throws Unsupported if that graph does not allow what the settings want.
    bool end_decode(bool succeeded);
    // The rest of the decode runs in full and does not count.
    void abandon();

    // [n_batch] of the decode that ended last; null where no row skipped anything.
    const std::vector<Left> * skipped_rows() const { return any_skipped_ ? &skipped_ : nullptr; }
    // [n_batch] likewise, the layer in which the row tripped, -1 where it did not; null where each row decided for itself.
    const std::vector<int32_t> * trips() const { return deciders_ == nullptr ? nullptr : &trips_; }
    // What rows of prompts leave out.
    Left left_of_prompts() const;
    // Of the decode that ended last; throws std::invalid_argument where it had no such row, or failed.
    RowStats row_stats(int32_t row) const;
    // Whether something was evaluated outside of begin_decode() and end_decode() since the last call.
    bool take_unknown_decode() { return std::exchange(unknown_decode_, false); }

    // ---- ggml's evaluation callback ----
    bool ask(ggml_tensor * node);      // before `node` is computed; true: observe() wants to see its result
    void observe(ggml_tensor * node);  // after

private:
    void begin(const ggml_tensor * token_ids);
    void end_evaluation();
    bool edit(ggml_tensor * node, const Node & known);
    bool concerns_channels(const Node & known) const;
    bool concerns_rows() const;
    void enter(int block);
    bool is_embedding(const ggml_tensor * node) const;
    bool ends_layer(const ggml_tensor * node, const Node & known) const;
    void trace_layer(const ggml_tensor * node);
    void follow_deciders();

    static Left left_by(const TokenState & row);

    TokenState & row(int64_t r) { return kinds_ == nullptr ? prompt_ : rows_[size_t(ubatch_[r])]; }

    const Settings & settings_;
    Recorder &       recorder_;

    // ---- the model ----
    GraphFollower       follower_;
    const ggml_tensor * embedding_ = nullptr;

    // ---- the running decode ----
    const RowKind *            kinds_     = nullptr;
    const Sequences::Decider * deciders_  = nullptr;
    bool                       skippable_ = false;       // some row may skip
    std::vector<TokenState>    rows_;                    // at least [n_batch]
    TokenState                 prompt_;                  // any row, where all are prompt
    std::vector<Left>          skipped_;                 // [n_batch]
    std::vector<int32_t>       trips_;                   // [n_batch]
    int32_t                    n_decoded_      = 0;      // rows of the decode that ended last
    bool                       all_prompt_     = false;  // and they were
    bool                       any_skipped_    = false;
    bool                       repeat_         = false;
    bool                       decoding_       = false;
    bool                       unknown_decode_ = false;
    Ubatches                   ubatches_;
    std::vector<int32_t>       token_ids_;  // [n_rows] of an ubatch whose ids are in a device's memory

    // ---- the running evaluation ---- Blocks are skipped and checked, as far as the structure of the graph is known;
    // if not, the batch will be repeated. Else edits of earlier evaluations are undone, nothing else.
    bool            following_ = false;
    const int32_t * ubatch_    = nullptr;  // [n_rows] its rows, as numbers in the batch; null where all are prompt
    int32_t         n_rows_    = 0;
    const Node *    asked_     = nullptr;  // what is known of the node asked about last

    // ---- the current block ----
    int      block_ = -1;     // its number
    bool     drop_  = false;  // every row skips it
    bool     gap_   = false;  // and leaves its cells of the cache as they were
    RowTasks tasks_;          // where it is computed: who checks it, and who skips it none the less

    std::unique_ptr<Buffers> buffers_ = ggml_buffers();
    Comparison               comparison_{ *buffers_ };
    LayerSimilarity          layers_{ *buffers_ };
    ChannelEvaluation        channels_{ settings_, recorder_, *buffers_ };
};

}  // namespace ffnskip
