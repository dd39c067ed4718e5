// What a context that drafts is fed tells of its drafts: it is given each token that it drafts, alone, and afterwards the
// rows in which they were verified. Where it goes on from there says how many were accepted, and when, how fast that is.
//
// Skipping that costs more accepted tokens than it saves time loses: so some rounds are drafted with skipping, then some
// without, and what gave more tokens a second stays.
#pragma once

#include <llama.h>

#include <cstdint>
#include <string>
#include <vector>

namespace ffnskip {

class DraftRounds {
public:
    static constexpr int k_trial = 64;  // rounds drafted with skipping, and as many without

    struct Counts {
        uint64_t drafted  = 0;
        uint64_t accepted = 0;
        uint64_t tokens   = 0;  // generated meanwhile: accepted ones, and the other model's own
        int64_t  us       = 0;  // it took
        int      rounds   = 0;
    };

    // These rows were decoded at this time, in microseconds.
    void see(const llama_batch & rows, int64_t now);

    // What the next rounds are to do.
    bool skips() const;
    // Both ways were tried, and skipping loses.
    bool loses() const { return verdict_ == Verdict::loses; }

    Counts         all() const;
    const Counts & skipping() const { return skipping_; }
    const Counts & dense() const { return dense_; }

private:
    enum class Verdict { unknown, pays, loses };  // stays: a program should not go to and fro

    struct Sequence {
        llama_pos drafted_from  = -1;  // of a draft that is not verified yet
        llama_pos n_drafted     = 0;
        llama_pos verified_from = -1;
        llama_pos n_verified    = 0;
    };
    struct Part {
        llama_seq_id seq   = -1;
        llama_pos    first = 0;
        llama_pos    n     = 0;
    };

    bool settle(Sequence & sequence, const Part & part);

    std::vector<Sequence> sequences_;  // by id
    std::vector<Part>     parts_;      // of the running batch
    Counts                skipping_, dense_;
    Verdict               verdict_ = Verdict::unknown;
    int64_t               since_   = -1;  // the last draft's acceptance was known; -1: a prompt came after it
};

void add(DraftRounds::Counts & sum, const DraftRounds::Counts & more);

// "62.3 % of 1304 drafted tokens accepted"
std::string to_line(const DraftRounds::Counts & counts);

}  // namespace ffnskip
