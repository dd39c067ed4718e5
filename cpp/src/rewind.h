// Going back in a context's memory, to decode some of its positions again.
#pragma once

#include <llama.h>

#include <algorithm>
#include <utility>
#include <vector>

namespace ffnskip {

// Whether the memory holds all that a token at position `from` of `seq` attends to. Layers with a sliding window of
// `n_swa` positions (0: none) forget what lies before it; the positions that they still have begin at pos_min.
inline bool window_is_there(llama_memory_t memory, llama_seq_id seq, llama_pos from, int32_t n_swa) {
    return n_swa <= 0 || llama_memory_seq_pos_min(memory, seq) <= std::max(0, from - n_swa + 1);
}

// Where the sequences of a batch ended before it, to go back there if it has to be decoded again.
class Ends {
public:
    void note(llama_memory_t memory, const llama_batch & batch) {
        ends_.clear();
        for (int32_t i = 0; i < batch.n_tokens; ++i) {
            const int32_t n_seq = batch.n_seq_id == nullptr ? 1 : batch.n_seq_id[i];
            for (int32_t s = 0; s < n_seq; ++s) {
                note(memory, batch.seq_id == nullptr ? 0 : batch.seq_id[i][s]);
            }
        }
    }

    // False where the memory can't, or has already overwritten what the batch attends to.
    bool go_back(llama_memory_t memory, int32_t n_swa) const {
        return std::all_of(ends_.begin(), ends_.end(), [&](const std::pair<llama_seq_id, llama_pos> & end) {
            const llama_pos from = end.second + 1;
            return window_is_there(memory, end.first, from, n_swa) && llama_memory_seq_rm(memory, end.first, from, -1);
        });
    }

private:
    void note(llama_memory_t memory, llama_seq_id seq) {
        const auto same = [&](const std::pair<llama_seq_id, llama_pos> & end) { return end.first == seq; };
        if (seq >= 0 && size_t(seq) < llama_max_parallel_sequences() && std::none_of(ends_.rbegin(), ends_.rend(), same)) {
            ends_.emplace_back(seq, llama_memory_seq_pos_max(memory, seq));
        }
    }

    std::vector<std::pair<llama_seq_id, llama_pos>> ends_;
};

}  // namespace ffnskip
