#include "evaluation.h"

#include "graph_edit.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace ffnskip {
namespace {

constexpr size_t k_max_maps = 8;  // graph structures remembered: with and without LoRA, control vector, offloading

}  // namespace

// ---- learning the model ----

void Evaluation::begin_probe(int n_layer, Split split, int32_t n_ubatch) {
    ubatches_.configure(split, n_ubatch);
    n_layer_     = n_layer;
    embedding_   = nullptr;
    learner_     = GraphLearner(n_layer);
    probe_armed_ = true;
    mode_        = Mode::idle;
    kinds_       = nullptr;
    maps_.clear();
}

const GraphMap * Evaluation::end_probe() {
    if (mode_ == Mode::probing) {
        maps_.push_back(learner_.finish());
    }
    mode_        = Mode::idle;
    probe_armed_ = false;
    return maps_.empty() ? nullptr : &maps_.front();
}

// ---- a decode ----

void Evaluation::begin_decode(const llama_batch & batch, const RowKind * kinds) {
    mode_      = Mode::idle;
    kinds_     = kinds;
    n_batch_   = batch.n_tokens;
    repeat_    = false;
    skippable_ = false;
    decoding_  = true;
    any_skipped_ = false;
    if (kinds == nullptr) {
        return;
    }
    recorder_.begin_decode(n_batch_);
    ubatches_.begin(batch);
    rows_.resize(std::max(rows_.size(), size_t(n_batch_)));
    for (int32_t i = 0; i < n_batch_; ++i) {
        TokenState & row = rows_[size_t(i)];
        if (kinds[i] == RowKind::skippable && settings_.skips_anything()) {
            row.begin(settings_, batch.pos == nullptr ? i : batch.pos[i], batch.token[i]);
            skippable_ = true;
        } else {
            row.begin_full();
        }
    }
}

bool Evaluation::end_decode(bool succeeded) {
    // What comes by llama_decode itself runs in full, and must not find this batch. A decode that failed may have left
    // a graph half learnt.
    const RowKind * kinds = kinds_;
    kinds_                = nullptr;
    decoding_             = false;
    if (succeeded) {
        keep_learnt();
    }
    mode_ = Mode::idle;
    if (succeeded && !repeat_ && kinds != nullptr) {
        recorder_.commit(rows_, kinds, n_batch_);
        note_skipped();
    }
    return succeeded && repeat_;
}

void Evaluation::note_skipped() {
    skipped_.resize(size_t(n_batch_));
    for (size_t i = 0; i < skipped_.size(); ++i) {
        skipped_[i]  = uint8_t(rows_[i].skips_any());
        any_skipped_ = any_skipped_ || skipped_[i] != 0;
    }
}

void Evaluation::abandon() {
    mode_     = Mode::idle;
    kinds_    = nullptr;
    decoding_ = false;
}

// ---- before a node is computed ----

bool Evaluation::ask(ggml_tensor * node) {
    restore(node);
    if (node->op == GGML_OP_GET_ROWS) {
        begin(node);
    }
    switch (mode_) {
        case Mode::idle:
            unknown_decode_ = unknown_decode_ || !decoding_;
            return false;
        case Mode::following:
            return follow(node);
        case Mode::probing:
            learner_.add(node);
            leave_out(node);
            return false;
        case Mode::learning:
            learner_.add(node);
            return false;
    }
    return false;
}

// Is `node` the first of an evaluation?
void Evaluation::begin(const ggml_tensor * node) {
    if (probe_armed_ && embedding_weight(node) != nullptr) {
        embedding_   = node->src[0];
        probe_armed_ = false;
        mode_        = Mode::probing;
        return;
    }
    if (mode_ == Mode::probing || embedding_ == nullptr || node->src[0] != embedding_) {
        return;
    }
    keep_learnt();
    mode_ = Mode::idle;
    if (kinds_ != nullptr && skippable_) {
        begin_ubatch(node->src[1]);
    }
}

// Finds the rows of the batch that are evaluated.
void Evaluation::begin_ubatch(const ggml_tensor * token_ids) {
    n_rows_ = int32_t(token_ids->ne[0]);
    ubatch_ = ubatches_.next(read_ids(memory_, token_ids, token_ids_), n_rows_);
    if (ubatch_ == nullptr) {
        throw Unsupported("llama.cpp split a batch of " + std::to_string(n_batch_) + " tokens in a way that is not known");
    }
    const bool any = std::any_of(ubatch_, ubatch_ + n_rows_, [&](int32_t i) { return rows_[size_t(i)].may_skip(); });
    if (any) {
        mode_   = Mode::following;
        map_    = &maps_.front();
        n_seen_ = 0;
        layer_  = -1;
        seen_.resize(std::max(seen_.size(), map_->nodes.size()));
    }
}

bool Evaluation::follow(ggml_tensor * node) {
    if (n_seen_ == map_->nodes.size() || !matches(map_->nodes[n_seen_], node, seen_.data())) {
        if (!switch_map(node)) {
            learn_from_here(node);
            return false;
        }
    }
    const Node & expected = map_->nodes[n_seen_];
    seen_[n_seen_++]      = node;
    if (expected.role == Role::none) {
        return false;
    }
    const Block & block = map_->blocks[size_t(expected.layer)];
    if (block.layer != layer_) {
        enter(block);
    }
    switch (expected.role) {
        case Role::body:
        case Role::branch:
            if (drop_) {
                leave_out(node);
                return false;
            }
            return expected.role == Role::branch && (tasks_.any_checks || tasks_.any_skips);
        case Role::residual_add:
            return ask_residual_add(node, block);
        case Role::layer_output:
            return tasks_.any_checks;
        case Role::none:
            break;
    }
    return false;
}

// The first node of a block: all that is known of its input is known now.
void Evaluation::enter(const Block & block) {
    layer_            = block.layer;
    tasks_.n_rows     = n_rows_;
    tasks_.any_checks = false;
    tasks_.checks.resize(size_t(n_rows_));
    tasks_.skips.resize(size_t(n_rows_));
    int32_t n_skip = 0;
    for (int32_t r = 0; r < n_rows_; ++r) {
        const bool skips  = row(r).skips(layer_);
        const bool checks = !skips && row(r).checks(layer_);
        tasks_.skips[size_t(r)]  = uint8_t(skips);
        tasks_.checks[size_t(r)] = uint8_t(checks);
        tasks_.any_checks        = tasks_.any_checks || checks;
        n_skip += skips;
    }
    drop_            = n_skip == n_rows_ && !block.fetches_experts;
    tasks_.any_skips = n_skip > 0 && !drop_;
}

bool Evaluation::ask_residual_add(ggml_tensor * add, const Block & block) {
    const bool wanted = drop_ || tasks_.any_checks || tasks_.any_skips;
    const bool lost_h = block.form == Form::sequential && !drop_ && add->data == add->src[block.h_src]->data;
    if (wanted && (lost_h || ggml_nrows(add) != n_rows_)) {
        --n_seen_;
        learn_from_here(add);
        return false;
    }
    if (drop_) {
        pass_h(add, block.h_src);
        recorder_.dropped(block.bytes);
        return false;
    }
    return block.form == Form::sequential && wanted;
}

// Looks for another known structure that begins as this evaluation did and goes on with `node`.
bool Evaluation::switch_map(const ggml_tensor * node) {
    for (size_t m = 0; m < maps_.size(); ++m) {
        const GraphMap & other = maps_[m];
        bool fits = &other != map_ && other.nodes.size() > n_seen_ && matches(other.nodes[n_seen_], node, seen_.data());
        for (size_t i = 0; fits && i < n_seen_; ++i) {
            fits = matches_unedited(other.nodes[i], seen_[i]);
        }
        if (fits) {
            std::rotate(maps_.begin(), maps_.begin() + std::ptrdiff_t(m), maps_.begin() + std::ptrdiff_t(m) + 1);
            map_ = &maps_.front();
            seen_.resize(std::max(seen_.size(), map_->nodes.size()));
            return true;
        }
    }
    return false;
}

// Compares a node that this evaluation may have edited already: as it was, then edited again.
bool Evaluation::matches_unedited(const Node & expected, ggml_tensor * node) const {
    const ggml_tensor edited = *node;
    restore(node);
    const bool same = matches(expected, node, seen_.data());
    node->op        = edited.op;
    node->flags     = edited.flags;
    node->src[0]    = edited.src[0];
    node->src[1]    = edited.src[1];
    return same;
}

// The graph is of unknown structure, so this evaluation is spoilt: learn it, and have the batch repeated.
void Evaluation::learn_from_here(const ggml_tensor * node) {
    learner_ = GraphLearner(n_layer_);
    for (size_t i = 0; i < n_seen_; ++i) {
        restore(seen_[i]);
        learner_.add(seen_[i]);
    }
    learner_.add(node);
    mode_   = Mode::learning;
    repeat_ = true;
}

void Evaluation::keep_learnt() {
    if (mode_ != Mode::learning) {
        return;
    }
    mode_ = Mode::idle;
    maps_.insert(maps_.begin(), learner_.finish());
    maps_.resize(std::min(maps_.size(), k_max_maps));
    for (const Block & block : maps_.front().blocks) {
        if (block.layer >= 0 && settings_.candidate[size_t(block.layer)] && !block.refusal.empty()) {
            throw Unsupported("layer " + std::to_string(block.layer) + " can no longer be skipped: " + block.refusal);
        }
    }
}

// ---- after a node was computed ----

void Evaluation::observe(ggml_tensor * node) {
    if (mode_ != Mode::following) {
        return;
    }
    if (ggml_nrows(node) != n_rows_) {
        throw Unsupported("node '" + std::string(node->name) + "' has " + std::to_string(ggml_nrows(node)) + " rows for " +
                          std::to_string(n_rows_) + " tokens");
    }
    const Block & block = map_->blocks[size_t(layer_)];
    switch (map_->nodes[n_seen_ - 1].role) {
        case Role::residual_add:
            move_on(activations_.after_add(node->src[block.h_src], node, tasks_));
            break;
        case Role::branch:
            observe_branch(node, block);
            break;
        case Role::layer_output:
            move_on(activations_.after_layer(node, tasks_));  // f left the skipping rows before it was added
            break;
        case Role::body:
        case Role::none:
            break;
    }
}

void Evaluation::observe_branch(ggml_tensor * f, const Block & block) {
    if (block.form == Form::in_place) {
        move_on(activations_.before_add(seen_[size_t(block.h)], f, tasks_));
    } else {
        activations_.keep(f, tasks_);
    }
}

// Algorithm 1, for the rows that check. `similarity` is that of each row of the ubatch.
void Evaluation::move_on(const float * similarity) {
    for (int32_t r = 0; r < n_rows_; ++r) {
        if (tasks_.checks[size_t(r)]) {
            row(r).observe(settings_, layer_, similarity[r]);
            recorder_.checked(ubatch_[r], layer_, similarity[r]);
        }
    }
}

}  // namespace ffnskip
