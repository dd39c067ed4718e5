// Counts and traces what was skipped. A decode may be repeated or fail, so nothing counts before commit().
#pragma once

#include "channel_reaches.h"
#include "ffnskip/blocks.h"
#include "ffnskip/rows.h"
#include "ffnskip/stats.h"
#include "policy.h"

#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

namespace ffnskip {

class Recorder {
public:
    // Its blocks, [n_layer * k_block_kinds], skippable or not.
    void set_model(std::vector<Block> blocks);
    // Inputs whose channels may be left out, by input_of(): how many, and what their products read without any and in all.
    struct Channels {
        int64_t  n           = 0;
        uint64_t bytes_least = 0;
        uint64_t bytes       = 0;

        uint64_t left_out(int64_t n_kept) const {
            return n == 0 ? 0 : (bytes - bytes_least) / uint64_t(n) * uint64_t(n - n_kept);  // each has as many
        }
    };
    void                          set_channels(std::vector<Channels> channels);
    const std::vector<Channels> & channels() const { return channels_; }

    void begin_decode(int32_t n_rows);
    void checked(int32_t row, int layer, float similarity);
    // What goes into a layer and what comes out of it are so similar. Where traces_layers().
    void passed(int32_t row, int layer, float similarity) {
        layer_similarity_[size_t(row) * size_t(n_layer_) + size_t(layer)] = similarity;
    }
    bool traces_layers() const { return traces_layers_; }
    // A block was left out for all rows of an ubatch, and its weights with it; of attention, those for keys and values only
    // where these were not written: `gap`.
    void dropped(int block, bool gap);
    // Row `row` left all but so many channels of an input out, and `alone`: the weights of the others were not read.
    void kept(int32_t row, int input, int64_t n, bool alone);
    // How far the channels of an input of a generated token reach: `reach(j)` for j < n_in. Where counts_reaches().
    template <typename Reach> void reached(int input, int64_t n_in, Reach reach) {
        for (int64_t j = 0; j < n_in; ++j) {
            reaches_[size_t(input)].count(reach(j));
        }
    }
    bool counts_reaches() const { return counts_reaches_; }
    // The decode stands. `rows` and `kinds` are of its batch, in order.
    void commit(const std::vector<TokenState> & rows, const RowKind * kinds, int32_t n_rows);

    // What a row left out, of the decode that was committed last: row `i` of its batch, unless all of it was a prompt.
    RowStats row_stats(const TokenState & row, std::optional<int32_t> i) const;

    // Weight bytes count where attention is left out.
    void count_attention(bool counts) { counts_attention_ = counts; }

    // Settings to be judged by the first tokens that may skip under them; or not.
    void                       judge(const Settings & settings);
    void                       trust() { first_checked_ = -1; }
    std::optional<std::string> take_notice();

    // From any thread.
    Stats stats() const;
    void  reset_stats();

    void  start_trace(bool reaches, bool layers);
    Trace stop_trace();

private:
    struct Bytes {
        uint64_t total    = 0;
        uint64_t left_out = 0;
    };

    void     commit_blocks(const TokenState & row);
    void     commit_channels(const TokenState & row, size_t i);
    void     commit_reaches();
    uint64_t bytes_of(int block, bool gap) const;
    void     count(const Bytes & bytes) {
        stats_.bytes_total += bytes.total;
        stats_.bytes_left_out += bytes.left_out;
    }
    Bytes    bytes_of_blocks(const TokenState & row) const;
    uint64_t bytes_wanted(const TokenState & row, int input) const;
    Bytes    bytes_of_input(const TokenState & row, int input, int64_t n_kept) const;
    // Of row `i` of the batch.
    int64_t n_kept(size_t i, size_t input) const {
        const int64_t found = kept_[i * channels_.size() + input];
        return found < 0 ? channels_[input].n : found;
    }

    int                n_layer_ = 0;
    std::vector<Block> blocks_;
    uint64_t           n_blocks_[k_block_kinds] = {};  // of the model
    uint64_t           bytes_of_blocks_         = 0;
    bool               counts_attention_        = false;

    uint64_t           checks_               = 0;   // of the running decode
    uint64_t           bytes_[k_block_kinds] = {};  // of the running decode
    std::vector<float> similarity_;                 // of the running decode, [n_rows, n_layer] while tracing
    std::vector<float> layer_similarity_;           // the same, where layers are traced

    std::vector<Channels>       channels_;                 // [n_inputs]
    bool                        counts_channels_ = false;  // there is something to count of them
    std::vector<int64_t>        kept_;                     // of the running decode, [n_rows, n_inputs]; -1: all
    std::vector<ChannelReaches> reaches_;                  // of the running decode, [n_inputs] where they are counted

    int   first_checked_ = -1;  // layer; -1: nothing is to be judged
    float threshold_     = 0.0f;
    int   n_judged_      = 0;
    int   n_at_once_     = 0;  // of these, tripped in that layer
    bool  noticed_       = false;

    mutable std::mutex stats_mutex_;  // taken once a decode
    Stats              stats_;
    Trace              trace_;
    bool               tracing_        = false;
    bool               counts_reaches_ = false;
    bool               traces_layers_  = false;
};

}  // namespace ffnskip
