#include "channel_reaches.h"

#include "ffnskip/stats.h"

#include <algorithm>
#include <cstring>

namespace ffnskip {
namespace {

constexpr int     k_shift = 20;                            // of a float's bits
constexpr int32_t k_first = (127 - 20) << (23 - k_shift);  // bits of 2^-20

}  // namespace

float ChannelReaches::edge(int bin) {
    const int32_t bits = (k_first + bin) << k_shift;
    float         value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
}

void ChannelReaches::count(float reach) {
    int32_t bits;
    std::memcpy(&bits, &reach, sizeof(bits));
    ++counts_[size_t(std::clamp((bits >> k_shift) - k_first, 0, k_bins - 1))];
    ++n_;
}

void ChannelReaches::clear() {
    n_ = 0;
    counts_.fill(0);
}

float ChannelReaches::below(double share) const {
    const double wanted = share * double(n_);
    if (wanted <= 0.0) {
        return 0.0f;
    }
    double below = 0.0;
    int    bin   = 0;
    while (bin < k_bins - 1 && below + counts_[size_t(bin)] < wanted) {
        below += counts_[size_t(bin++)];
    }
    const uint32_t within = counts_[size_t(bin)];
    const double   part   = within == 0 ? 0.0 : std::max(0.0, wanted - below) / within;
    return edge(bin) + float(part) * (edge(bin + 1) - edge(bin));
}

std::vector<float> reach_edges() {
    std::vector<float> edges;
    for (int bin = 0; bin <= ChannelReaches::k_bins; ++bin) {
        edges.push_back(ChannelReaches::edge(bin));
    }
    return edges;
}

}  // namespace ffnskip
