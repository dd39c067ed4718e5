#include "draft_rounds.h"

#include <cstdio>

namespace ffnskip {
namespace {

double speed(const DraftRounds::Counts & counts) {
    return counts.us > 0 ? double(counts.tokens) / double(counts.us) : 0.0;
}

}  // namespace

bool DraftRounds::skips() const {
    return verdict_ == Verdict::pays || skipping_.rounds < k_trial;
}

DraftRounds::Counts DraftRounds::all() const {
    Counts sum = skipping_;
    add(sum, dense_);
    return sum;
}

// Where the sequence goes on says how much of its last draft was accepted. Whether it had one.
bool DraftRounds::settle(Sequence & sequence, const Part & part) {
    const llama_pos from = sequence.verified_from, n_tokens = part.first - from;
    sequence.verified_from = -1;
    if (from < 0 || n_tokens < 1 || n_tokens > sequence.n_verified) {
        return false;
    }
    Counts & counts = skips() ? skipping_ : dense_;
    counts.drafted += uint64_t(sequence.n_verified - 1);
    counts.accepted += uint64_t(n_tokens - 1);
    counts.tokens += since_ < 0 ? 0 : uint64_t(n_tokens);
    return true;
}

void DraftRounds::see(const llama_batch & rows, int64_t now) {
    parts_.clear();
    for (int32_t i = 0; i < rows.n_tokens; ++i) {
        const llama_seq_id seq = rows.seq_id[i][0];
        if (parts_.empty() || parts_.back().seq != seq) {
            parts_.push_back({ seq, rows.pos[i], 0 });
        }
        ++parts_.back().n;
    }
    bool any_settled = false, any_prompt = false;
    for (const Part & part : parts_) {
        if (size_t(part.seq) >= sequences_.size()) {
            sequences_.resize(size_t(part.seq) + 1);
        }
        Sequence & sequence = sequences_[size_t(part.seq)];
        any_settled         = settle(sequence, part) || any_settled;
        if (part.n == 1) {
            const bool goes_on    = part.first == sequence.drafted_from + sequence.n_drafted;
            sequence.drafted_from = goes_on && sequence.drafted_from >= 0 ? sequence.drafted_from : part.first;
            sequence.n_drafted    = part.first - sequence.drafted_from + 1;
            continue;
        }
        const llama_pos drafted_to  = sequence.drafted_from + sequence.n_drafted;
        const bool      is_verified = sequence.drafted_from >= 0 && part.first >= sequence.drafted_from &&
                                      part.first < drafted_to && part.first + part.n <= drafted_to + 1;
        sequence.verified_from      = is_verified ? part.first : -1;
        sequence.n_verified         = part.n;
        sequence.drafted_from       = -1;
        any_prompt                  = any_prompt || !is_verified;
    }
    if (any_settled) {
        Counts & counts = skips() ? skipping_ : dense_;
        counts.us += since_ < 0 ? 0 : now - since_;
        counts.rounds += since_ < 0 ? 0 : 1;
        since_ = now;
        if (verdict_ == Verdict::unknown && dense_.rounds == k_trial) {
            verdict_ = speed(skipping_) >= speed(dense_) ? Verdict::pays : Verdict::loses;
        }
    }
    since_ = any_prompt ? -1 : since_;
}

void add(DraftRounds::Counts & sum, const DraftRounds::Counts & more) {
    sum.drafted += more.drafted;
    sum.accepted += more.accepted;
    sum.tokens += more.tokens;
    sum.us += more.us;
    sum.rounds += more.rounds;
}

std::string to_line(const DraftRounds::Counts & counts) {
    char         text[96];
    const double share = counts.drafted == 0 ? 0.0 : 100.0 * double(counts.accepted) / double(counts.drafted);
    std::snprintf(text, sizeof(text), "%.1f %% of %llu drafted tokens accepted", share,
                  static_cast<unsigned long long>(counts.drafted));
    return text;
}

}  // namespace ffnskip
