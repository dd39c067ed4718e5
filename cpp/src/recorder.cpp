#include "recorder.h"

#include <algorithm>
#include <limits>
#include <utility>

namespace ffnskip {

void Recorder::set_model(const std::vector<uint8_t> & has_ffn) {
    n_layer_ = int(has_ffn.size());
    n_ffn_   = uint64_t(std::count(has_ffn.begin(), has_ffn.end(), uint8_t(1)));
    reset_stats();
}

void Recorder::begin_decode(int32_t n_rows) {
    checks_ = 0;
    bytes_  = 0;
    if (tracing_) {
        similarity_.assign(size_t(n_rows) * size_t(n_layer_), std::numeric_limits<float>::quiet_NaN());
    }
}

void Recorder::checked(int32_t row, int layer, float similarity) {
    ++checks_;
    if (tracing_) {
        similarity_[size_t(row) * size_t(n_layer_) + size_t(layer)] = similarity;
    }
}

void Recorder::commit(const std::vector<TokenState> & rows, const RowKind * kinds, int32_t n_rows, Policy policy) {
    stats_.checks += checks_;
    stats_.ffn_bytes_not_read += bytes_;
    for (int32_t i = 0; i < n_rows; ++i) {
        if (kinds[i] == RowKind::prompt) {
            continue;
        }
        const TokenState & row = rows[size_t(i)];
        for (int il = 0; il < n_layer_; ++il) {
            stats_.ffn_skipped += row.skips(il);
            stats_.skipped_per_layer[size_t(il)] += row.skips(il);
        }
        ++stats_.tokens;
        stats_.ffn_total += n_ffn_;
        stats_.tokens_never_tripped += is_adaptive(policy) && row.may_skip() && !row.tripped();
        if (tracing_) {
            append_trace(i, row);
        }
    }
}

void Recorder::append_trace(int32_t i, const TokenState & row) {
    const auto first = similarity_.begin() + std::ptrdiff_t(i) * n_layer_;
    trace_.similarity.insert(trace_.similarity.end(), first, first + n_layer_);
    for (int il = 0; il < n_layer_; ++il) {
        trace_.skipped.push_back(row.skips(il));
    }
    ++trace_.n_tokens;
}

void Recorder::reset_stats() {
    stats_                   = Stats();
    stats_.skipped_per_layer = std::vector<uint64_t>(size_t(n_layer_), 0);
}

void Recorder::start_trace() {
    trace_         = Trace();
    trace_.n_layer = n_layer_;
    tracing_       = true;
}

Trace Recorder::stop_trace() {
    tracing_ = false;
    return std::exchange(trace_, Trace());
}

}  // namespace ffnskip
