#include "evaluation.h"

#include "graph_edit.h"
#include "rows.h"
#include "similarity.h"

#include <algorithm>
#include <cstring>
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
    if (succeeded) {
        keep_learnt();
    }
    mode_ = Mode::idle;
    if (succeeded && !repeat_ && kinds != nullptr) {
        recorder_.commit(rows_, kinds, n_batch_, settings_.policy);
    }
    return succeeded && repeat_;
}

void Evaluation::abandon() {
    mode_  = Mode::idle;
    kinds_ = nullptr;
}

// ---- before a node is computed ----

bool Evaluation::ask(ggml_tensor * node) {
    restore(node);
    if (node->op == GGML_OP_GET_ROWS) {
        begin(node);
    }
    switch (mode_) {
        case Mode::idle:
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
    ubatch_ = ubatches_.next(read_ids(token_ids, token_ids_), n_rows_);
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
            return expected.role == Role::branch && (checks_ || restores_);
        case Role::residual_add:
            return ask_residual_add(node, block);
        case Role::layer_output:
            return checks_;
        case Role::none:
            break;
    }
    return false;
}

// The first node of a block: all that is known of its input is known now.
void Evaluation::enter(const Block & block) {
    layer_     = block.layer;
    int n_skip = 0;
    checks_    = false;
    for (int32_t r = 0; r < n_rows_; ++r) {
        n_skip += row(r).skips(layer_);
        checks_ = checks_ || row(r).checks(layer_);
    }
    drop_     = n_skip == n_rows_;
    restores_ = n_skip > 0 && !drop_;
}

bool Evaluation::ask_residual_add(ggml_tensor * add, const Block & block) {
    const bool wanted = drop_ || checks_ || restores_;
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
            observe_residual_add(node, block);
            break;
        case Role::branch:
            observe_branch(node, block);
            break;
        case Role::layer_output:
            observe_layer_output(node);
            break;
        case Role::body:
        case Role::none:
            break;
    }
}

// Algorithm 1 moves on for the rows that check; rows that skip, in a block computed for others, get h back.
// `check(r)` yields the similarity of row r of the ubatch, `put_back(r)` takes f out of it.
template <typename Check, typename PutBack> void Evaluation::for_rows(Check check, PutBack put_back) {
    for (int32_t r = 0; r < n_rows_; ++r) {
        if (row(r).skips(layer_)) {
            put_back(r);
        } else if (row(r).checks(layer_)) {
            const float similarity = check(r);
            row(r).observe(settings_, layer_, similarity);
            recorder_.checked(ubatch_[r], layer_, similarity);
        }
    }
}

void Evaluation::observe_residual_add(ggml_tensor * add, const Block & block) {
    const ggml_tensor * h = add->src[block.h_src];
    for_rows([&](int64_t r) { return cosine(read_row(h, r, scratch_[0]), read_row(add, r, scratch_[1]), add->ne[0]); },
             [&](int64_t r) { copy_row(h, add, r, scratch_[0]); });
}

void Evaluation::observe_branch(ggml_tensor * f, const Block & block) {
    const int64_t n = f->ne[0];
    if (block.form == Form::in_place) {
        const ggml_tensor * h = seen_[size_t(block.h)];
        for_rows([&](int64_t r) { return cosine_with_sum(read_row(h, r, scratch_[0]), read_row(f, r, scratch_[1]), n); },
                 [&](int64_t r) { zero_row(f, r); });
        return;
    }
    // Parallel: f is gone by the time the layer's output is known, so it is kept.
    f_rows_.resize(size_t(n * n_rows_));
    for (int64_t r = 0; r < n_rows_; ++r) {
        if (row(r).checks(layer_)) {
            std::memcpy(&f_rows_[size_t(r * n)], read_row(f, r, scratch_[0]), size_t(n) * sizeof(float));
        }
        if (row(r).skips(layer_)) {
            zero_row(f, r);
        }
    }
}

void Evaluation::observe_layer_output(ggml_tensor * out) {
    const int64_t n = out->ne[0];
    for_rows([&](int64_t r) { return cosine_with_difference(read_row(out, r, scratch_[0]), &f_rows_[size_t(r * n)], n); },
             [](int64_t) {});  // f left these rows before it was added
}

}  // namespace ffnskip
