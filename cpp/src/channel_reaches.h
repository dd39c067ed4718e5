// How far input channels reach, counted, so that a threshold can be found that leaves out a share of them.
//
// Reaches are counted by their logarithm, in steps of an eighth of an octave from 2^-20 on: floats of the same upper
// bits. What lies within a step is taken to be spread evenly.
#pragma once

#include <array>
#include <cstdint>

namespace ffnskip {

class ChannelReaches {
public:
    static constexpr int k_bins = 256;

    // Where a bin begins; that of k_bins is where the last one ends.
    static float edge(int bin);

    void count(float reach);
    void clear();

    uint64_t                             n() const { return n_; }
    const std::array<uint32_t, k_bins> & counts() const { return counts_; }
    // The reach that so large a share of all is below; 0 for none of them.
    float below(double share) const;

private:
    uint64_t                     n_ = 0;
    std::array<uint32_t, k_bins> counts_{};
};

}  // namespace ffnskip
