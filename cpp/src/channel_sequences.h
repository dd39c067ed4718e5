// The thresholds of policy `channels`, found for each sequence from its own first tokens where no profile has any.
//
// The first generated tokens after a prompt run in full, the warm-up at least and never fewer than k_rows of them. They
// show how far the channels of each input reach; from then on those are left out that are among the share wanted.
#pragma once

#include "channel_reaches.h"
#include "ffnskip/config.h"
#include "ffnskip/rows.h"

#include <llama.h>

#include <cstdint>
#include <vector>

namespace ffnskip {

enum class ChannelRow : uint8_t {
    full,
    observed,    // in full, and shown to observe()
    leaves_out,  // channels
};

class ChannelSequences {
public:
    static constexpr int k_rows = k_channel_tokens;  // of thousands of channels each

    // `left_out`: [n_inputs] share of its channels to leave out; negative: none, nothing is found. `forget`: all sequences.
    void configure(std::vector<double> left_out, bool forget = true);

    // What becomes of a row that is about to be decoded. Rows of a sequence are told in order; told again, they are what
    // they were.
    ChannelRow begin(llama_seq_id seq, llama_pos pos, RowKind kind);
    // The reach of each channel of an input: `reach(j)` for j < n_in.
    template <typename Reach> void observe(llama_seq_id seq, llama_pos pos, int input, int64_t n_in, Reach reach);
    // The reach under which channels are left out.
    float threshold(llama_seq_id seq, int input);

    // Position of the last row that told of a sequence; -1: none has since it began.
    llama_pos counted_to(llama_seq_id seq) { return sequence(seq).counted_to; }

    void copied(llama_seq_id from, llama_seq_id to);
    // What comes next of the sequence, of all if negative, is its first generated token.
    void restart(llama_seq_id seq);

private:
    struct Reaches {
        llama_pos      seen_to = -1;  // position
        ChannelReaches counted;
        float          threshold = 0.0f;
        bool           stale     = false;
    };

    struct Sequence {
        bool                 generating = false;
        llama_pos            counted_to = -1;  // position
        int                  n_rows     = 0;   // observed
        std::vector<Reaches> inputs;           // [n_inputs]
    };

    Sequence & sequence(llama_seq_id seq);

    std::vector<double>   left_out_;
    std::vector<Sequence> sequences_;  // by id, grows with the ids seen
};

template <typename Reach>
void ChannelSequences::observe(llama_seq_id seq, llama_pos pos, int input, int64_t n_in, Reach reach) {
    Reaches & to = sequence(seq).inputs[size_t(input)];
    if (pos <= to.seen_to) {
        return;
    }
    to.seen_to = pos;
    to.stale   = true;
    for (int64_t j = 0; j < n_in; ++j) {
        to.counted.count(reach(j));
    }
}

}  // namespace ffnskip
