// Goes back in a context's memory.
#pragma once

#include <llama.h>

#include <algorithm>

namespace ffnskip {

// Whether the memory holds all that a token at position `from` of `seq` attends to. Layers with a sliding window forget
// what lies before it; the positions that they still have begin at pos_min.
inline bool window_is_there(llama_context * ctx, llama_seq_id seq, llama_pos from) {
    const int32_t n_swa = llama_model_n_swa(llama_get_model(ctx));
    return n_swa <= 0 || from <= 0 ||
           llama_memory_seq_pos_min(llama_get_memory(ctx), seq) <= std::max(0, from - n_swa + 1);
}

// Takes position `from` of a sequence and what follows it out of the memory. False where the memory can't, or has
// already overwritten what a token there attends to; then nothing is changed.
inline bool go_back(llama_context * ctx, llama_seq_id seq, llama_pos from) {
    return window_is_there(ctx, seq, from) && llama_memory_seq_rm(llama_get_memory(ctx), seq, from, -1);
}

}  // namespace ffnskip
