#include "ubatches.h"

#include <algorithm>

namespace ffnskip {

Split usual_split(const llama_context * ctx) {
    const bool unified = llama_n_ctx_seq(ctx) == llama_n_ctx(ctx);  // one memory, shared by all sequences
    const bool hybrid  = llama_model_is_hybrid(llama_get_model(ctx));
    if (llama_n_seq_max(ctx) == 1 || (unified && !hybrid)) {
        return Split::simple;
    }
    return unified ? Split::equal : Split::equal_sequential;
}

void Ubatches::configure(Split split, int32_t n_ubatch) {
    usual_    = split;
    n_ubatch_ = std::max(1, n_ubatch);
}

void Ubatches::begin(const llama_batch & batch) {
    batch_  = &batch;
    n_done_ = 0;
}

const int32_t * Ubatches::next(const int32_t * tokens, int32_t n_tokens) {
    if (n_done_ == 0) {
        plan(usual_);
        // A memory without room for its usual way tries another one.
        for (const Split other : { Split::simple, Split::equal, Split::equal_sequential, Split::by_sequence }) {
            if (fits(tokens, n_tokens)) {
                break;
            }
            plan(other);
        }
    }
    return fits(tokens, n_tokens) ? &order_[size_t(first_of(n_done_++))] : nullptr;
}

bool Ubatches::fits(const int32_t * tokens, int32_t n_tokens) const {
    return n_done_ < ends_.size() && ends_[n_done_] - first_of(n_done_) == n_tokens &&
           std::equal(
               tokens, tokens + n_tokens, &order_[size_t(first_of(n_done_))],
               [&](int32_t token, int32_t row) { return batch_->token[row] == token; });
}

void Ubatches::plan(Split split) {
    order_.clear();
    ends_.clear();
    read_sequences();
    while (int32_t(order_.size()) < batch_->n_tokens) {
        if (split == Split::simple || split == Split::by_sequence) {
            take_in_order(split == Split::by_sequence);
        } else {
            take_equal(split == Split::equal_sequential);
        }
        ends_.push_back(int32_t(order_.size()));
    }
}

void Ubatches::read_sequences() {
    sets_.assign(size_t(batch_->n_tokens), Set());
    taken_.assign(size_t(batch_->n_tokens), 0);
    for (int32_t i = 0; i < batch_->n_tokens; ++i) {
        const int32_t n_seq = batch_->n_seq_id == nullptr || batch_->seq_id == nullptr ? 0 : batch_->n_seq_id[i];
        for (int32_t s = 0; s < n_seq; ++s) {
            if (const llama_seq_id seq = batch_->seq_id[i][s]; seq >= 0 && size_t(seq) < k_max_sequences) {
                sets_[size_t(i)].set(size_t(seq));
            }
        }
        if (n_seq == 0) {
            sets_[size_t(i)].set(0);
        }
    }
}

void Ubatches::take(int32_t row) {
    order_.push_back(row);
    taken_[size_t(row)] = 1;
}

void Ubatches::take_equal(bool sequential) {
    // Sets that have no sequence in common, by the order of their first row left.
    Set          covered;
    llama_seq_id last = -1;
    chosen_.clear();
    for (int32_t i = 0; i < batch_->n_tokens && int32_t(chosen_.size()) <= n_ubatch_; ++i) {
        const Set &        set = sets_[size_t(i)];
        const llama_seq_id seq = batch_->seq_id == nullptr ? 0 : batch_->seq_id[i][0];
        if (!taken_[size_t(i)] && (set & covered).none() && (!sequential || chosen_.empty() || seq == last + 1)) {
            chosen_.push_back(set);
            covered |= set;
            last = seq;
        }
    }
    // As many rows of each set as the shortest has left and as n_ubatch has room for, but one at least.
    const auto is_of  = [&](int32_t i, const Set & set) { return !taken_[size_t(i)] && sets_[size_t(i)] == set; };
    int32_t    n_each = std::max(1, n_ubatch_ / int32_t(chosen_.size()));
    for (const Set & set : chosen_) {
        int32_t n_left = 0;
        for (int32_t i = 0; i < batch_->n_tokens && n_left < n_each; ++i) {
            n_left += is_of(i, set);
        }
        n_each = std::min(n_each, n_left);
    }
    for (const Set & set : chosen_) {
        for (int32_t i = 0, n = 0; n < n_each; ++i) {
            if (is_of(i, set)) {
                take(i);
                ++n;
            }
        }
    }
}

// The first rows left; of one sequence: only those whose set of sequences is part of that of the row before.
void Ubatches::take_in_order(bool one_sequence) {
    const Set * current = nullptr;
    for (int32_t i = 0, n = 0; i < batch_->n_tokens && n < n_ubatch_; ++i) {
        const Set & set = sets_[size_t(i)];
        if (!taken_[size_t(i)] && (!one_sequence || current == nullptr || (*current & set) == set)) {
            take(i);
            ++n;
            current = &set;
        }
    }
}

}  // namespace ffnskip
