#include "ubatches.h"

#include <algorithm>
#include <numeric>

namespace ffnskip {
namespace {

llama_seq_id first_sequence(const llama_batch & batch, int32_t row) {
    return batch.seq_id == nullptr ? 0 : batch.seq_id[row][0];
}

}  // namespace

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
    if (!fits(tokens, n_tokens)) {
        return nullptr;
    }
    const int32_t first = n_done_ == 0 ? 0 : ends_[n_done_ - 1];
    ++n_done_;
    return &order_[size_t(first)];
}

bool Ubatches::fits(const int32_t * tokens, int32_t n_tokens) const {
    const int32_t first = n_done_ == 0 ? 0 : ends_[n_done_ - 1];
    if (n_done_ == ends_.size() || ends_[n_done_] - first != n_tokens) {
        return false;
    }
    for (int32_t r = 0; r < n_tokens; ++r) {
        if (batch_->token[order_[size_t(first + r)]] != tokens[r]) {
            return false;
        }
    }
    return true;
}

void Ubatches::plan(Split split) {
    order_.clear();
    ends_.clear();
    if (split == Split::simple || batch_->n_tokens == 1) {
        plan_simple();
        return;
    }
    find_sets();
    if (split == Split::by_sequence) {
        plan_by_sequence();
    } else {
        plan_equal(split == Split::equal_sequential);
    }
}

void Ubatches::plan_simple() {
    order_.resize(size_t(batch_->n_tokens));
    std::iota(order_.begin(), order_.end(), 0);
    for (int32_t end = n_ubatch_; end < batch_->n_tokens; end += n_ubatch_) {
        ends_.push_back(end);
    }
    end_ubatch();
}

void Ubatches::find_sets() {
    const int32_t n = batch_->n_tokens;
    sets_.clear();
    set_of_.resize(size_t(n));
    taken_.assign(size_t(n), 0);
    for (auto & rows : rows_) {
        rows.clear();
    }
    for (int32_t i = 0; i < n; ++i) {
        Set           set;
        const int32_t n_seq = batch_->n_seq_id == nullptr ? 1 : batch_->n_seq_id[i];
        for (int32_t s = 0; s < n_seq; ++s) {
            const llama_seq_id seq = batch_->seq_id == nullptr ? 0 : batch_->seq_id[i][s];
            if (seq >= 0 && size_t(seq) < k_max_sequences) {
                set.set(size_t(seq));
            }
        }
        const auto found = std::find(sets_.rbegin(), sets_.rend(), set);
        set_of_[size_t(i)] = int32_t(found == sets_.rend() ? sets_.size() : size_t(sets_.rend() - found) - 1);
        if (found == sets_.rend()) {
            sets_.push_back(set);
            rows_.resize(std::max(rows_.size(), sets_.size()));
        }
        rows_[size_t(set_of_[size_t(i)])].push_back(i);
    }
    n_taken_.assign(sets_.size(), 0);
}

void Ubatches::take(int32_t row) {
    order_.push_back(row);
    taken_[size_t(row)] = 1;
    ++n_taken_[size_t(set_of_[size_t(row)])];
}

// Sets that have no sequence in common, by the order of their first row left.
void Ubatches::choose_sets(bool sequential) {
    chosen_.clear();
    Set          covered;
    llama_seq_id last = -1;
    for (int32_t i = 0; i < batch_->n_tokens && int32_t(chosen_.size()) <= n_ubatch_; ++i) {
        const Set &        set = sets_[size_t(set_of_[size_t(i)])];
        const llama_seq_id seq = first_sequence(*batch_, i);
        if (taken_[size_t(i)] || (set & covered).any() || (sequential && !chosen_.empty() && seq != last + 1)) {
            continue;
        }
        chosen_.push_back(set_of_[size_t(i)]);
        covered |= set;
        last = seq;
    }
}

void Ubatches::plan_equal(bool sequential) {
    while (int32_t(order_.size()) < batch_->n_tokens) {
        choose_sets(sequential);
        // As many rows of each set as the shortest has left and as n_ubatch has room for, but one at least.
        const int32_t n_sets = int32_t(chosen_.size());
        int32_t       n_each = std::max(1, n_ubatch_ / n_sets);
        for (const int32_t s : chosen_) {
            n_each = std::min(n_each, int32_t(rows_[size_t(s)].size()) - n_taken_[size_t(s)]);
        }
        for (const int32_t s : chosen_) {
            for (int32_t k = 0; k < n_each; ++k) {
                take(rows_[size_t(s)][size_t(n_taken_[size_t(s)])]);
            }
        }
        end_ubatch();
    }
}

// The first row left, then rows whose set of sequences is part of the one before.
void Ubatches::plan_by_sequence() {
    while (int32_t(order_.size()) < batch_->n_tokens) {
        const size_t begin   = order_.size();
        const Set *  current = nullptr;
        for (int32_t i = 0; i < batch_->n_tokens && int32_t(order_.size() - begin) < n_ubatch_; ++i) {
            const Set & set = sets_[size_t(set_of_[size_t(i)])];
            if (!taken_[size_t(i)] && (current == nullptr || (*current & set) == set)) {
                take(i);
                current = &set;
            }
        }
        end_ubatch();
    }
}

}  // namespace ffnskip
