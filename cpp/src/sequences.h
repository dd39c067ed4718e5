// Tells generated tokens from prompt tokens, sequence by sequence, by nothing but the batches that are decoded.
//
// A generated token was sampled from the output of the token before it. So a row is one if it is the only row of its
// sequence, stands right behind what the memory holds of it, and the last row decoded there was the one before it and
// had its output requested. A prompt cut into chunks, down to one token, has no output but at its end.
#pragma once

#include "ffnskip/controller.h"

#include <llama.h>

#include <cstdint>
#include <vector>

namespace ffnskip {

class Sequences {
public:
    // The kind of each row of `rows`, valid until the next call; null if all are prompt tokens. Reads the memory as it
    // is before the decode.
    const RowKind * classify(llama_memory_t memory, const llama_batch & rows, int warm_up_index);
    // The rows last classified have been decoded.
    void commit();

    void copied(llama_seq_id from, llama_seq_id to);
    void shifted(llama_seq_id seq, llama_pos p0, llama_pos p1, llama_pos delta);
    void replaced(llama_seq_id seq);  // all if negative

private:
    struct Sequence {
        llama_pos last      = -1;     // position of the row decoded last
        bool      output    = false;  // whose output was requested
        int64_t   generated = 0;      // rows decoded since the prompt ended
    };

    // What the running batch has of a sequence.
    struct Part {
        llama_seq_id seq    = -1;
        int32_t      n_rows = 0;
        int32_t      row    = -1;  // the last one
        llama_pos    next   = -1;  // position after what the memory holds, then after each row
        llama_pos    last   = -1;
        bool         output = false;
        bool         shared = false;  // some row belongs to another sequence as well
        bool         generated = false;
    };

    void       take(llama_memory_t memory, const llama_batch & rows, int32_t i);
    Part &     part_of(llama_memory_t memory, llama_seq_id seq);
    Sequence * known(llama_seq_id seq);

    std::vector<Sequence> sequences_;  // by id, grows with the ids seen
    std::vector<Part>     parts_;
    std::vector<RowKind>  kinds_;
};

}  // namespace ffnskip
