// Follows the evaluations of a context's graphs node by node: knows where it is in the FFN block of which layer, asks the
// rows' policies, edits the graph, and shows the rows what they wanted to see.
//
// One decode is one or more evaluations, one per ubatch; nothing announces one but its first node, which reads the token
// embeddings.
#pragma once

#include "ffnskip/controller.h"
#include "ggml_memory.h"
#include "graph_map.h"
#include "policy.h"
#include "recorder.h"
#include "rows.h"
#include "ubatches.h"

#include <llama.h>

#include <cstdint>
#include <utility>
#include <vector>

namespace ffnskip {

class Evaluation {
public:
    Evaluation(const Settings & settings, Recorder & recorder) : settings_(settings), recorder_(recorder) {}

    // ---- learning the model: the next evaluation computes nothing ----
    // `split` and `n_ubatch` say how the context cuts its batches.
    void             begin_probe(int n_layer, Split split, int32_t n_ubatch);
    // What was learnt; null where no evaluation of a decoder was seen.
    const GraphMap * end_probe();

    // ---- a decode ----
    // `kinds` of the batch's rows; null: all prompt, and nothing is counted. Both stay as they are until end_decode().
    void begin_decode(const llama_batch & batch, const RowKind * kinds);
    // True if the batch met a graph of unknown structure, which is known now: decode it again.
    // Throws Unsupported if that graph does not allow what the settings want.
    bool end_decode(bool succeeded);

    // [n_batch] of the decode that ended last: 1 where the row skipped an FFN block; null where none did.
    const std::vector<uint8_t> * skipped_rows() const { return any_skipped_ ? &skipped_ : nullptr; }

    // Whether something was evaluated outside of begin_decode() and end_decode() since the last call.
    bool take_unknown_decode() { return std::exchange(unknown_decode_, false); }

    bool probing() const { return probe_armed_ || mode_ == Mode::probing; }

    // The rest of the decode runs in full and does not count.
    void abandon();

    // ---- ggml's evaluation callback ----
    bool ask(ggml_tensor * node);      // before `node` is computed; true: observe() wants to see its result
    void observe(ggml_tensor * node);  // after

private:
    enum class Mode {
        idle,       // dense: edits of earlier evaluations are undone, nothing else
        probing,    // learning, and nothing is computed
        following,  // the structure is known: blocks are skipped and checked
        learning,   // the structure turned out to be new: dense, and the batch will be repeated
    };

    void note_skipped();
    void begin(const ggml_tensor * node);
    void begin_ubatch(const ggml_tensor * token_ids);
    bool follow(ggml_tensor * node);
    void enter(const Block & block);
    bool ask_residual_add(ggml_tensor * add, const Block & block);
    bool switch_map(const ggml_tensor * node);
    bool matches_unedited(const Node & expected, ggml_tensor * node) const;
    void learn_from_here(const ggml_tensor * node);
    void keep_learnt();

    void observe_branch(ggml_tensor * f, const Block & block);
    void move_on(const float * similarity);

    TokenState & row(int64_t r) { return rows_[size_t(ubatch_[r])]; }

    const Settings & settings_;
    Recorder &       recorder_;

    // ---- the model ----
    int                   n_layer_   = 0;
    const ggml_tensor *   embedding_ = nullptr;  // weight read by the first node of every evaluation
    std::vector<GraphMap> maps_;                 // most recently followed first

    // ---- the running decode ----
    const RowKind *         kinds_     = nullptr;
    int32_t                 n_batch_   = 0;
    bool                    skippable_ = false;  // some row may skip
    std::vector<TokenState> rows_;               // [n_batch]
    Ubatches                ubatches_;
    std::vector<int32_t>    token_ids_;          // [n_rows] of an ubatch whose ids are in a device's memory
    bool                    repeat_ = false;
    bool                    decoding_       = false;
    bool                    unknown_decode_ = false;
    bool                    any_skipped_    = false;
    std::vector<uint8_t>    skipped_;            // [n_batch]

    // ---- the running evaluation ----
    Mode                       mode_        = Mode::idle;
    bool                       probe_armed_ = false;
    GraphLearner               learner_{ 0 };
    const GraphMap *           map_ = nullptr;
    std::vector<ggml_tensor *> seen_;            // [n_seen] nodes asked so far
    size_t                     n_seen_ = 0;
    const int32_t *            ubatch_ = nullptr;  // [n_rows] its rows, as numbers in the batch
    int32_t                    n_rows_ = 0;

    // ---- the current block ----
    int      layer_ = -1;
    bool     drop_  = false;  // every row skips it
    RowTasks tasks_;          // where it is computed: who checks it, and who skips it none the less

    GgmlMemory memory_;
    Rows       activations_{ memory_ };
};

}  // namespace ffnskip
