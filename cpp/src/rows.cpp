#include "ffnskip/rows.h"

namespace ffnskip {

void Batch::clear() {
    tokens_.clear();
    positions_.clear();
    sequences_.clear();
    outputs_.clear();
}

void Batch::add(llama_token token, llama_pos position, llama_seq_id seq, bool output) {
    tokens_.push_back(token);
    positions_.push_back(position);
    sequences_.push_back(seq);
    outputs_.push_back(int8_t(output));
}

llama_batch Batch::rows() {
    sequence_of_.clear();
    for (llama_seq_id & seq : sequences_) {
        sequence_of_.push_back(&seq);
    }
    n_sequences_.resize(tokens_.size(), 1);
    return { n_rows(),       tokens_.data(), nullptr, positions_.data(), n_sequences_.data(), sequence_of_.data(),
             outputs_.data() };
}

}  // namespace ffnskip
