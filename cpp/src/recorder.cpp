#include "recorder.h"

#include "tensor_names.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <iterator>
#include <limits>
#include <utility>

namespace ffnskip {
namespace {

constexpr int k_judged  = 100;  // tokens
constexpr int k_at_once = 95;   // of these; more tell that the threshold decides nothing

}  // namespace

void Recorder::set_model(std::vector<Block> blocks) {
    blocks_          = std::move(blocks);
    n_layer_         = int(blocks_.size()) / k_block_kinds;
    bytes_of_blocks_ = 0;
    std::fill(std::begin(n_blocks_), std::end(n_blocks_), 0);
    for (const Block & block : blocks_) {
        n_blocks_[size_t(block.kind)] += block.layer >= 0;
        bytes_of_blocks_ += block.bytes_per_token;
    }
    set_channels(std::vector<Channels>(size_t(n_layer_) * k_input_kinds));

    // Tokens decoded before ran every block.
    const std::lock_guard lock(stats_mutex_);
    stats_.ffn_total       = stats_.tokens * n_blocks_[size_t(BlockKind::ffn)];
    stats_.attention_total = stats_.tokens * n_blocks_[size_t(BlockKind::attention)];
    stats_.skipped_per_layer.resize(size_t(n_layer_), 0);
    stats_.attention_skipped_per_layer.resize(size_t(n_layer_), 0);
}

uint64_t Recorder::bytes_of(int block, bool gap) const {
    const Block & found = blocks_[size_t(block)];
    return found.bytes_per_token - (gap ? 0 : found.bytes_of_cache);
}

void Recorder::dropped(int block, bool gap) {
    bytes_[size_t(kind_of(block))] += bytes_of(block, gap);
}

void Recorder::set_channels(std::vector<Channels> channels) {
    channels_        = std::move(channels);
    counts_channels_ = std::any_of(channels_.begin(), channels_.end(), [](const Channels & c) { return c.bytes > 0; });

    const std::lock_guard lock(stats_mutex_);
    stats_.channels_total.resize(channels_.size(), 0);
    stats_.channels_kept.resize(channels_.size(), 0);
}

void Recorder::begin_decode(int32_t n_rows) {
    checks_ = 0;
    std::fill(std::begin(bytes_), std::end(bytes_), 0);
    if (counts_channels_ || tracing_) {
        kept_.assign(size_t(n_rows) * channels_.size(), -1);
    }
    reaches_.resize(counts_reaches_ ? channels_.size() : 0);
    for (ChannelReaches & reaches : reaches_) {
        reaches.clear();
    }
    if (tracing_) {
        similarity_.assign(size_t(n_rows) * size_t(n_layer_), std::numeric_limits<float>::quiet_NaN());
    }
    if (traces_layers_) {
        layer_similarity_.assign(size_t(n_rows) * size_t(n_layer_), std::numeric_limits<float>::quiet_NaN());
    }
}

void Recorder::checked(int32_t row, int layer, float similarity) {
    ++checks_;
    if (tracing_) {
        similarity_[size_t(row) * size_t(n_layer_) + size_t(layer)] = similarity;
    }
}

void Recorder::kept(int32_t row, int input, int64_t n, bool alone) {
    const Channels & channels = channels_[size_t(input)];

    kept_[size_t(row) * channels_.size() + size_t(input)] = n;
    if (alone && is_of_ffn(input)) {
        bytes_[size_t(BlockKind::ffn)] += channels.left_out(n);
    }
}

// A token's blocks.
void Recorder::commit_blocks(const TokenState & row) {
    for (int il = 0; il < n_layer_; ++il) {
        const bool ffn       = row.skips(il, BlockKind::ffn);
        const bool attention = row.skips(il, BlockKind::attention);
        stats_.ffn_skipped += ffn;
        stats_.attention_skipped += attention;
        stats_.skipped_per_layer[size_t(il)] += ffn;
        stats_.attention_skipped_per_layer[size_t(il)] += attention;
        if (tracing_) {
            trace_.skipped.push_back(ffn);
            trace_.attention_skipped.push_back(attention);
        }
    }
    if (counts_attention_ && !counts_channels_) {
        count(bytes_of_blocks(row));
    }
}

// Of all blocks, for a row.
Recorder::Bytes Recorder::bytes_of_blocks(const TokenState & row) const {
    Bytes bytes{ bytes_of_blocks_, 0 };
    for (int il = 0; il < n_layer_; ++il) {
        bytes.left_out += row.skips(il, BlockKind::ffn) ? bytes_of(block_of(il, BlockKind::ffn), true) : 0;
        bytes.left_out +=
            row.skips(il, BlockKind::attention) ? bytes_of(block_of(il, BlockKind::attention), row.leaves_gaps()) : 0;
    }
    return bytes;
}

// A token's inputs, which is row `i` of the batch.
void Recorder::commit_channels(const TokenState & row, size_t i) {
    for (size_t input = 0; input < channels_.size(); ++input) {
        const Channels & channels = channels_[input];
        const int64_t    n        = bytes_wanted(row, int(input)) == 0 ? 0 : n_kept(i, input);
        stats_.channels_total[input] += uint64_t(channels.n);
        stats_.channels_kept[input] += uint64_t(n);
        count(bytes_of_input(row, int(input), n));
        if (tracing_) {
            trace_.kept.push_back(channels.n == 0 ? std::numeric_limits<float>::quiet_NaN()
                                                  : float(double(n) / double(channels.n)));
        }
    }
}

// That the products which read an input would read for a row, were all channels kept. Keys and values of attention that is
// left out may be wanted: then their matrices read the input.
uint64_t Recorder::bytes_wanted(const TokenState & row, int input) const {
    const BlockKind kind    = is_of_ffn(input) ? BlockKind::ffn : BlockKind::attention;
    const int       block   = block_of(input / k_input_kinds, kind);
    const bool      skipped = row.skips(block);
    const bool      cached  = skipped && !row.leaves_gaps() && InputKind(input % k_input_kinds) == InputKind::qkv;
    const uint64_t  all     = channels_[size_t(input)].bytes;
    return cached ? std::min(all, blocks_[size_t(block)].bytes_of_cache) : skipped ? 0 : all;
}

Recorder::Bytes Recorder::bytes_of_input(const TokenState & row, int input, int64_t n_kept) const {
    const Channels & channels = channels_[size_t(input)];
    const uint64_t   read     = bytes_wanted(row, input);
    const uint64_t   left_out =
        read == 0 ? 0 : uint64_t(double(channels.left_out(n_kept)) * double(read) / double(channels.bytes));
    return { channels.bytes, channels.bytes - read + left_out };
}

RowStats Recorder::row_stats(const TokenState & row, std::optional<int32_t> i) const {
    RowStats stats;
    stats.may_skip = row.may_skip();
    for (int il = 0; il < n_layer_; ++il) {
        if (row.skips(il, BlockKind::ffn)) {
            stats.ffn.push_back(il);
        }
        if (row.skips(il, BlockKind::attention)) {
            stats.attention.push_back(il);
        }
    }
    Bytes bytes = counts_attention_ && !counts_channels_ ? bytes_of_blocks(row) : Bytes();
    for (size_t input = 0; counts_channels_ && input < channels_.size(); ++input) {
        const Bytes more = bytes_of_input(row, int(input), i ? n_kept(size_t(*i), input) : channels_[input].n);
        bytes.total += more.total;
        bytes.left_out += more.left_out;
    }
    const uint64_t n_ffn = n_blocks_[size_t(BlockKind::ffn)];
    if (bytes.total > 0) {
        stats.skip_ratio = double(bytes.left_out) / double(bytes.total);
    } else if (n_ffn > 0) {
        stats.skip_ratio = double(stats.ffn.size()) / double(n_ffn);
    }
    if (counts_channels_) {
        stats.kept = 1.0 - stats.skip_ratio;
    }
    return stats;
}

void Recorder::commit_reaches() {
    trace_.reaches.resize(reaches_.size() * ChannelReaches::k_bins, 0);
    auto to = trace_.reaches.begin();
    for (const ChannelReaches & reaches : reaches_) {
        to = std::transform(reaches.counts().begin(), reaches.counts().end(), to, to, std::plus<uint64_t>());
    }
}

void Recorder::commit(const std::vector<TokenState> & rows, const RowKind * kinds, int32_t n_rows) {
    const std::lock_guard lock(stats_mutex_);
    stats_.checks += checks_;
    stats_.ffn_bytes_not_read += bytes_[size_t(BlockKind::ffn)];
    stats_.attention_bytes_not_read += bytes_[size_t(BlockKind::attention)];
    commit_reaches();
    for (int32_t i = 0; i < n_rows; ++i) {
        if (kinds[i] == RowKind::prompt) {
            continue;
        }
        const TokenState & row = rows[size_t(i)];
        commit_blocks(row);
        if (tracing_) {
            const auto first = similarity_.begin() + std::ptrdiff_t(size_t(i) * size_t(n_layer_));
            trace_.similarity.insert(trace_.similarity.end(), first, first + n_layer_);
        }
        if (traces_layers_) {
            const auto first = layer_similarity_.begin() + std::ptrdiff_t(size_t(i) * size_t(n_layer_));
            trace_.layer_similarity.insert(trace_.layer_similarity.end(), first, first + n_layer_);
        }
        if (counts_channels_ || tracing_) {
            commit_channels(row, size_t(i));
        }
        trace_.n_tokens += tracing_;
        ++stats_.tokens;
        stats_.ffn_total += n_blocks_[size_t(BlockKind::ffn)];
        stats_.attention_total += n_blocks_[size_t(BlockKind::attention)];
        stats_.tokens_never_tripped += row.never_tripped();
        if (first_checked_ >= 0 && n_judged_ < k_judged && row.may_skip() && !row.follows()) {
            ++n_judged_;
            n_at_once_ += row.trip_layer() == first_checked_;
        }
    }
}

void Recorder::judge(const Settings & settings) {
    const auto first = std::find(settings.checked.begin(), settings.checked.end(), uint8_t(1));
    const bool some  = settings.skips_anything() && first != settings.checked.end();
    first_checked_   = some ? int(first - settings.checked.begin()) : -1;
    threshold_       = some ? settings.threshold[size_t(first_checked_)] : 0.0f;
    n_judged_        = 0;
    n_at_once_       = 0;
}

std::optional<std::string> Recorder::take_notice() {
    if (noticed_ || n_judged_ < k_judged || n_at_once_ <= k_at_once) {
        return std::nullopt;
    }
    noticed_ = true;
    char text[256];
    std::snprintf(
        text, sizeof(text),
        "%d of the first %d tokens reached sim_threshold %g in layer %d, the first that is checked: the threshold "
        "tells nothing about this model; \"ffnskip calibrate\" finds what does",
        n_at_once_, n_judged_, double(threshold_), first_checked_);
    return text;
}

Stats Recorder::stats() const {
    const std::lock_guard lock(stats_mutex_);
    return stats_;
}

void Recorder::reset_stats() {
    const std::lock_guard lock(stats_mutex_);
    stats_                             = Stats();
    stats_.skipped_per_layer           = std::vector<uint64_t>(size_t(n_layer_), 0);
    stats_.attention_skipped_per_layer = std::vector<uint64_t>(size_t(n_layer_), 0);
    stats_.channels_total              = std::vector<uint64_t>(channels_.size(), 0);
    stats_.channels_kept               = std::vector<uint64_t>(channels_.size(), 0);
}

void Recorder::start_trace(bool reaches, bool layers) {
    trace_          = Trace();
    trace_.n_layer  = n_layer_;
    tracing_        = true;
    counts_reaches_ = reaches;
    traces_layers_  = layers;
}

Trace Recorder::stop_trace() {
    tracing_        = false;
    counts_reaches_ = false;
    traces_layers_  = false;
    Trace trace     = std::exchange(trace_, Trace());
    // A policy that leaves no channels out says nothing of them, unless it took turns with one that does.
    if (std::all_of(trace.kept.begin(), trace.kept.end(), [](float share) { return std::isnan(share); })) {
        trace.kept.clear();
    }
    return trace;
}

}  // namespace ffnskip
