#include "channel_sequences.h"

#include <algorithm>
#include <utility>

namespace ffnskip {

void ChannelSequences::configure(std::vector<double> left_out, bool forget) {
    left_out_ = std::move(left_out);
    if (forget) {
        sequences_.clear();
    }
}

ChannelSequences::Sequence & ChannelSequences::sequence(llama_seq_id seq) {
    const size_t id = size_t(std::max(0, seq));
    if (id >= sequences_.size()) {
        sequences_.resize(id + 1);
    }
    Sequence & found = sequences_[id];
    found.inputs.resize(std::max(found.inputs.size(), left_out_.size()));
    return found;
}

ChannelRow ChannelSequences::begin(llama_seq_id seq, llama_pos pos, RowKind kind) {
    Sequence & state = sequence(seq);
    if (kind == RowKind::prompt) {
        state.generating = false;
        return ChannelRow::full;
    }
    if (!state.generating) {
        restart(seq);
        state.inputs.resize(left_out_.size());
        state.generating = true;
    }
    if (pos > state.counted_to) {
        if (kind == RowKind::skippable && state.n_rows >= k_rows) {
            return ChannelRow::leaves_out;
        }
        ++state.n_rows;
        state.counted_to = pos;
    }
    return ChannelRow::observed;
}

float ChannelSequences::threshold(llama_seq_id seq, int input) {
    Reaches & reaches = sequence(seq).inputs[size_t(input)];
    if (!std::exchange(reaches.stale, false)) {
        return reaches.threshold;
    }
    reaches.threshold = reaches.counted.below(left_out_[size_t(input)]);
    return reaches.threshold;
}

void ChannelSequences::copied(llama_seq_id from, llama_seq_id to) {
    if (from < 0 || to < 0 || from == to) {
        return;
    }
    sequence(std::max(from, to));
    sequences_[size_t(to)] = sequence(from);
}

void ChannelSequences::restart(llama_seq_id seq) {
    for (size_t id = 0; id < sequences_.size(); ++id) {
        if (seq < 0 || size_t(seq) == id) {
            sequences_[id] = Sequence();
        }
    }
}

}  // namespace ffnskip
