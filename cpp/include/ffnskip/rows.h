// The rows of a batch: tokens for one llama_decode, and what they are.
#pragma once

#include "ffnskip/export.h"

#include <llama.h>

#include <cstdint>
#include <vector>

namespace ffnskip FFNSKIP_API {

enum class RowKind : uint8_t {
    prompt,     // runs in full, not counted
    warm_up,    // a generated token that runs in full (Algorithm 1's warm_up_index), counted
    skippable,  // a generated token that may skip, counted
};

// What a caller says of all rows of a batch.
enum class Fed : uint8_t {
    recognise,  // seen from the batch, as <ffnskip/controller.h> says
    prompt,
    generated,  // by a loop of the caller's own: they continue the sequence's count
    draft,      // of a context that drafts for another: see <ffnskip/controller.h>
};

// Rows for one llama_decode.
class Batch {
public:
    void    clear();
    void    add(llama_token token, llama_pos position, llama_seq_id seq, bool output);
    int32_t n_rows() const { return int32_t(tokens_.size()); }

    // Valid until the next change.
    llama_batch rows();

private:
    std::vector<llama_token>    tokens_;
    std::vector<llama_pos>      positions_;
    std::vector<llama_seq_id>   sequences_;
    std::vector<int8_t>         outputs_;
    std::vector<llama_seq_id *> sequence_of_;
    std::vector<int32_t>        n_sequences_;
};

}  // namespace ffnskip FFNSKIP_API
