#include "evaluation.h"

#include "ffnskip/errors.h"
#include "graph_edit.h"

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <string>

namespace ffnskip {

void Evaluation::set_model(GraphMap map, const ggml_tensor * embedding, Split split, int32_t n_ubatch) {
    follower_.reset(std::move(map));
    embedding_ = embedding;
    ubatches_.configure(split, n_ubatch);
}

// ---- a decode ----

void Evaluation::begin_decode(const llama_batch & batch, const Sequences::Rows & known) {
    const RowKind * kinds = known.kinds;

    following_   = false;
    kinds_       = kinds;
    deciders_    = known.deciders;
    repeat_      = false;
    skippable_   = false;
    any_skipped_ = false;
    n_decoded_   = 0;
    decoding_    = true;
    prompt_.begin_full(settings_);
    const size_t n_batch = size_t(batch.n_tokens);
    skipped_.assign(n_batch, Left::nothing);
    if (kinds == nullptr) {
        skippable_ = prompt_.may_skip();
        return;
    }
    recorder_.begin_decode(batch.n_tokens);
    ubatches_.begin(batch);
    rows_.resize(std::max(rows_.size(), n_batch));
    const bool channels = channels_.any();
    if (channels) {
        channels_.begin_decode(batch, kinds);
    }
    for (size_t i = 0; i < n_batch; ++i) {
        const bool full = channels && channels_.row(i) != ChannelRow::leaves_out;
        skippable_      = skippable_ || (channels && channels_.row(i) != ChannelRow::full);
        if (known.n_left_out != nullptr) {
            rows_[i].begin_without(settings_, known.n_left_out[i]);
        } else if (kinds[i] == RowKind::skippable && settings_.skips_anything() && !full) {
            rows_[i].begin(settings_, batch.pos == nullptr ? int32_t(i) : batch.pos[i], batch.token[i]);
            if (deciders_ != nullptr && deciders_[i].row != int32_t(i)) {
                rows_[i].follow(settings_, deciders_[i].trip_layer);
            }
        } else {
            rows_[i].begin_full(settings_);
        }
        skippable_ = skippable_ || rows_[i].may_skip();
    }
}

bool Evaluation::end_decode(bool succeeded) {
    // What comes by llama_decode itself runs in full, and must not find this batch. A decode that failed may have left
    // a graph half learnt.
    const RowKind * kinds = std::exchange(kinds_, nullptr);
    decoding_             = false;
    if (succeeded) {
        end_evaluation();
    }
    following_ = false;
    if (!succeeded || repeat_) {
        return succeeded && repeat_;
    }
    n_decoded_  = int32_t(skipped_.size());
    all_prompt_ = kinds == nullptr;
    if (kinds != nullptr) {
        recorder_.commit(rows_, kinds, n_decoded_);
    }
    for (size_t i = 0; i < skipped_.size(); ++i) {
        skipped_[i]  = left_by(kinds == nullptr ? prompt_ : rows_[i]);
        any_skipped_ = any_skipped_ || skipped_[i] != Left::nothing;
    }
    if (deciders_ != nullptr) {
        trips_.resize(skipped_.size());
        std::transform(rows_.begin(), rows_.begin() + std::ptrdiff_t(trips_.size()), trips_.begin(),
                       [](const TokenState & row) { return row.trip_layer(); });
    }
    return false;
}

Left Evaluation::left_by(const TokenState & row) {
    return row.leaves_gaps() ? Left::gaps : row.skips_any() ? Left::skipped : Left::nothing;
}

Left Evaluation::left_of_prompts() const {
    return left_by(prompt_);
}

RowStats Evaluation::row_stats(int32_t row) const {
    if (row < 0 || row >= n_decoded_) {
        throw std::invalid_argument("row: " + std::to_string(row) + " is outside [0, " + std::to_string(n_decoded_) +
                                    "), the rows of the last decode");
    }
    return all_prompt_ ? recorder_.row_stats(prompt_, std::nullopt) : recorder_.row_stats(rows_[size_t(row)], row);
}

void Evaluation::abandon() {
    following_ = false;
    kinds_     = nullptr;
    decoding_  = false;
}

// ---- before a node is computed ----

bool Evaluation::ask(ggml_tensor * node) {
    restore(node);
    if (is_embedding(node)) {
        begin(node->src[1]);
    }
    if (!following_) {
        unknown_decode_ = unknown_decode_ || !decoding_;
        return false;
    }
    if (const Node * known = follower_.next(node)) {
        asked_            = known;
        const bool edits  = known->role != Role::none && edit(node, *known);
        const bool wanted = ends_layer(node, *known) || edits;
        return concerns_channels(*known) && (node->flags & k_left_out) == 0
                   ? channels_.ask(node, *known, follower_) || wanted
                   : wanted;
    }
    repeat_ = true;
    return false;
}

void Evaluation::begin(const ggml_tensor * token_ids) {
    end_evaluation();
    if (!skippable_) {
        return;
    }
    n_rows_ = int32_t(token_ids->ne[0]);
    ubatch_ = kinds_ == nullptr ? nullptr : ubatches_.next(read_ids(*buffers_, token_ids, token_ids_), n_rows_);
    if (ubatch_ == nullptr && kinds_ != nullptr) {
        throw Unsupported("llama.cpp split a batch of " + std::to_string(skipped_.size()) +
                          " tokens in a way that is not known");
    }
    if (kinds_ == nullptr || concerns_rows()) {
        following_ = true;
        follow_deciders();
        if (channels_.any() && kinds_ != nullptr) {
            channels_.begin(ubatch_, n_rows_);
        }
        block_ = -1;
        layers_.begin();
        follower_.begin();
    }
}

bool Evaluation::concerns_rows() const {
    return std::any_of(ubatch_, ubatch_ + n_rows_, [&](int32_t i) {
        return rows_[size_t(i)].may_skip() || (channels_.any() && channels_.row(size_t(i)) != ChannelRow::full);
    });
}

// Remembers a structure that turned out to be new.
void Evaluation::end_evaluation() {
    if (!std::exchange(following_, false)) {
        return;
    }
    if (!follower_.learning()) {
        channels_.end();
        return;
    }
    const GraphMap & learnt = follower_.keep_learnt();
    for (size_t i = 0; i < learnt.inputs.size(); ++i) {
        if (channels_.active(int(i)) && !learnt.inputs[i].usable()) {
            throw Unsupported("layer " + std::to_string(int(i) / k_input_kinds) +
                              " can no longer leave out channels of " + k_input_kind_names[i % k_input_kinds] + ": " +
                              learnt.inputs[i].why_not);
        }
    }
    for (int number = 0; number < int(learnt.blocks.size()); ++number) {
        const bool    ffn    = kind_of(number) == BlockKind::ffn;
        const auto &  wanted = ffn ? settings_.candidate : settings_.attention;
        const Block & block  = learnt.blocks[size_t(number)];
        if (wanted[size_t(layer_of(number))] && !block.skippable) {
            throw Unsupported(std::string(ffn ? "" : "attention of ") + "layer " + std::to_string(layer_of(number)) +
                              " can no longer be skipped: " + block.why_not);
        }
    }
}

bool Evaluation::edit(ggml_tensor * node, const Node & known) {
    if (known.block != block_) {
        enter(known.block);
    }
    const FoundBlock & block = follower_.block(block_);
    switch (known.role) {
        case Role::cached:
            if (gap_) {
                leave_out(node);
            }
            return false;
        case Role::body:
        case Role::branch:
            if (drop_) {
                leave_out(node);
            }
            return known.role == Role::branch && (tasks_.any_checks || tasks_.any_skips);
        case Role::residual_add:
            if (drop_) {
                pass_h(node, block.h_src);
                recorder_.dropped(block_, gap_);
            }
            return tasks_.any_checks && block.output == block.residual_add;
        case Role::layer_output:
            return tasks_.any_checks;
        case Role::none:
            break;
    }
    return false;
}

bool Evaluation::concerns_channels(const Node & known) const {
    return ubatch_ != nullptr && ((known.product >= 0 && channels_.active(input_of(known.product))) ||
                                  (known.input >= 0 && channels_.active(known.input)));
}

bool Evaluation::is_embedding(const ggml_tensor * node) const {
    return node->op == GGML_OP_GET_ROWS && node->src[0] == embedding_;
}

// Layers are traced, and `node` is what comes out of one, or goes into the first: the token embeddings, but for a factor.
bool Evaluation::ends_layer(const ggml_tensor * node, const Node & known) const {
    if (!recorder_.traces_layers() || ubatch_ == nullptr || ggml_nrows(node) != n_rows_) {
        return false;
    }
    if (known.block < 0 || kind_of(known.block) != BlockKind::ffn) {
        return is_embedding(node);
    }
    const FoundBlock & block = follower_.block(known.block);
    const bool         adds  = known.role == Role::residual_add || known.role == Role::layer_output;
    return adds && node == follower_.seen(block.output < 0 ? block.residual_add : block.output);
}

void Evaluation::trace_layer(const ggml_tensor * node) {
    const float * similarity = layers_.next(node);
    for (int32_t r = 0; similarity != nullptr && asked_->block >= 0 && r < n_rows_; ++r) {
        recorder_.passed(ubatch_[r], layer_of(asked_->block), similarity[r]);
    }
}

// The first node of a block: all that is known of its input is known now.
void Evaluation::enter(int block) {
    block_            = block;
    tasks_.n_rows     = n_rows_;
    tasks_.any_checks = false;
    tasks_.checks.resize(size_t(n_rows_));
    tasks_.skips.resize(size_t(n_rows_));
    const bool ffn    = kind_of(block) == BlockKind::ffn;
    int32_t    n_skip = 0;
    gap_              = true;
    for (int32_t r = 0; r < n_rows_; ++r) {
        const bool skips         = row(r).skips(block);
        const bool checks        = !skips && ffn && row(r).checks(layer_of(block));
        tasks_.skips[size_t(r)]  = uint8_t(skips);
        tasks_.checks[size_t(r)] = uint8_t(checks);
        tasks_.any_checks        = tasks_.any_checks || checks;
        n_skip += skips;
        gap_ = gap_ && row(r).leaves_gaps();
    }
    drop_            = n_skip == n_rows_ && !follower_.block(block).fetches_experts;
    gap_             = gap_ && drop_;
    tasks_.any_skips = n_skip > 0 && !drop_;
}

// ---- after a node was computed ----

void Evaluation::observe(ggml_tensor * node) {
    if (!following_) {
        return;
    }
    const bool of_experts = asked_->product >= 0 && is_of_experts(asked_->product);
    if ((asked_->input >= 0 || of_experts) && concerns_channels(*asked_)) {
        channels_.observe(node, *asked_, follower_);
        return;
    }
    if (ggml_nrows(node) != n_rows_) {
        throw Unsupported("node '" + std::string(node->name) + "' has " + std::to_string(ggml_nrows(node)) +
                          " rows for " + std::to_string(n_rows_) + " tokens");
    }
    if (ends_layer(node, *asked_)) {
        trace_layer(node);
        if (asked_->block < 0 || follower_.block(asked_->block).output < 0) {
            return;
        }
    }
    // f is there, or h + f where f was kept for it.
    const FoundBlock & block      = follower_.block(block_);
    const float *      similarity = nullptr;
    if (node != follower_.seen(block.branch)) {
        similarity = comparison_.after_add(node, tasks_);
    } else if (block.output < 0) {
        similarity = comparison_.before_add(follower_.seen(block.h), node, tasks_);
    } else {
        comparison_.keep(node, tasks_);
        return;
    }
    // Algorithm 1, for the rows that check.
    for (int32_t r = 0; r < n_rows_; ++r) {
        if (tasks_.checks[size_t(r)]) {
            row(r).observe(settings_, block.layer, similarity[r]);
            recorder_.checked(ubatch_[r], block.layer, similarity[r]);
        }
    }
    if (tasks_.any_checks) {
        follow_deciders();
    }
}

// Rows do what those of the batch did that decide for them, in this evaluation or in one before.
void Evaluation::follow_deciders() {
    for (int32_t r = 0; deciders_ != nullptr && r < n_rows_; ++r) {
        const int32_t decider = deciders_[ubatch_[r]].row;
        if (decider >= 0 && decider != ubatch_[r]) {
            row(r).follow(settings_, rows_[size_t(decider)].trip_layer());
        }
    }
}

}  // namespace ffnskip
