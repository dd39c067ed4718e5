// Which rows of a batch make up each of its ubatches, and in which order.
//
// libllama cuts a batch in one of four ways, depending on the model's memory and on how it is shared by sequences. The
// graph holds the token ids of its ubatch, so that a way is taken only as long as it fits them.
#pragma once

#include <llama.h>

#include <bitset>
#include <cstdint>
#include <vector>

namespace ffnskip {

enum class Split : uint8_t {
    simple,            // rows in order, n_ubatch at a time: one memory for all sequences
    equal,             // as many rows of each of several sequences, one sequence after the other: hybrid models
    equal_sequential,  // the same, for sequences whose ids follow one another: a memory of its own for each sequence
    by_sequence,       // one sequence at a time: hybrid models where every row has output
};

// How a context cuts its batches, as a rule.
Split usual_split(const llama_context * ctx);

class Ubatches {
public:
    static constexpr size_t k_max_sequences = 256;  // llama.cpp's own limit

    // The way a context splits as a rule, and its n_ubatch.
    void configure(Split split, int32_t n_ubatch);

    // `batch` must stay as it is until the last next().
    void begin(const llama_batch & batch);
    // The rows of the next ubatch, which has these token ids; null if no known way of splitting gives them.
    const int32_t * next(const int32_t * tokens, int32_t n_tokens);

private:
    using Set = std::bitset<k_max_sequences>;

    void    plan(Split split);
    void    read_sequences();
    void    take_equal(bool sequential);
    void    take_in_order(bool one_sequence);
    void    take(int32_t row);
    bool    fits(const int32_t * tokens, int32_t n_tokens) const;
    int32_t first_of(size_t ubatch) const { return ubatch == 0 ? 0 : ends_[ubatch - 1]; }

    Split   usual_    = Split::simple;
    int32_t n_ubatch_ = 1;

    const llama_batch *  batch_ = nullptr;
    std::vector<int32_t> order_;  // rows of all ubatches, one ubatch after the other
    std::vector<int32_t> ends_;   // where each ends in order_
    size_t               n_done_ = 0;

    std::vector<Set>     sets_;    // [n_tokens] the sequences that the row belongs to
    std::vector<uint8_t> taken_;   // [n_tokens]
    std::vector<Set>     chosen_;  // of the ubatch being made
};

}  // namespace ffnskip
