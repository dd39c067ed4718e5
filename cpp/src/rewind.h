// Goes back in a context's memory, and computes again what has to be.
#pragma once

#include "evaluation.h"
#include "sequences.h"

#include <llama.h>

namespace ffnskip {

// Takes the sequences of a batch back to where they ended before it. False where the memory can't, or has already
// overwritten what the batch attends to. `n_swa`: of the model.
bool go_back(llama_memory_t memory, const std::vector<Sequences::Part> & parts, int32_t n_swa);

// Decodes positions [from, end) of a sequence in full; more of them where the memory of its sliding windows has gone on.
// Throws Unsupported where that can't be done, and then nothing has been; std::runtime_error where llama_decode fails.
void repeat(llama_context * ctx, Evaluation & evaluation, const Sequences & sequences, llama_seq_id seq, llama_pos from,
            llama_pos end);

}  // namespace ffnskip
