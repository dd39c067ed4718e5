// Goes back in a context's memory, and computes again what has to be.
#pragma once

#include "evaluation.h"
#include "sequences.h"

#include <llama.h>

#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

namespace ffnskip {

// Whether the memory holds all that a token at position `from` of `seq` attends to. Layers with a sliding window of
// `n_swa` positions (0: none) forget what lies before it; the positions that they still have begin at pos_min.
inline bool window_is_there(llama_memory_t memory, llama_seq_id seq, llama_pos from, int32_t n_swa) {
    return n_swa <= 0 || llama_memory_seq_pos_min(memory, seq) <= std::max(0, from - n_swa + 1);
}

// Takes the sequences of a batch back to where they ended before it. False where the memory can't, or has already
// overwritten what the batch attends to. `n_swa`: of the model.
inline bool go_back(llama_memory_t memory, const std::vector<Sequences::Part> & parts, int32_t n_swa) {
    return std::all_of(parts.begin(), parts.end(), [&](const Sequences::Part & part) {
        return window_is_there(memory, part.seq, part.next, n_swa) && llama_memory_seq_rm(memory, part.seq, part.next, -1);
    });
}

// Decodes positions [from, end) of a sequence in full; more of them where the memory of its sliding windows has gone
// on. Throws Unsupported where that can't be done, and then nothing has been; DecodeError where llama_decode fails.
inline void repeat(llama_context * ctx, Evaluation & evaluation, const Sequences & sequences, llama_seq_id seq,
                   llama_pos from, llama_pos end) {
    const llama_memory_t memory = llama_get_memory(ctx);
    const int32_t        n_swa  = llama_model_n_swa(llama_get_model(ctx));
    const llama_pos      begin  = window_is_there(memory, seq, from, n_swa) ? from : 0;
    const llama_token *  found  = sequences.tokens(seq, begin, end);
    if (found == nullptr || !llama_memory_seq_rm(memory, seq, begin, -1)) {
        throw Unsupported("positions " + std::to_string(begin) + " to " + std::to_string(end - 1) + " of sequence " +
                          std::to_string(seq) + " were computed with skipping and can't be computed again: " +
                          (found == nullptr ? "their tokens are not known" : "the model's memory can't go back"));
    }
    std::vector<llama_token>    tokens(found, found + (end - begin));
    const size_t                n_batch = std::min(tokens.size(), size_t(llama_n_batch(ctx)));
    std::vector<llama_pos>      pos(n_batch);
    std::vector<int32_t>        n_seq(n_batch, 1);
    std::vector<llama_seq_id *> seqs(n_batch, &seq);
    std::vector<int8_t>         logits(n_batch, 0);
    for (size_t done = 0; done < tokens.size(); done += n_batch) {
        std::iota(pos.begin(), pos.end(), begin + llama_pos(done));
        const llama_batch batch = { int32_t(std::min(n_batch, tokens.size() - done)), &tokens[done], nullptr, pos.data(),
                                    n_seq.data(), seqs.data(), logits.data() };
        evaluation.begin_decode(batch, nullptr);
        const int32_t status = llama_decode(ctx, batch);
        evaluation.end_decode(status == 0);
        if (status != 0) {
            throw DecodeError(status);
        }
    }
}

}  // namespace ffnskip
