// Property: the thresholds found for a sequence are the quantiles of what its first generated tokens showed.
#include "channel_sequences.h"
#include "expect.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

using namespace ffnskip;

namespace {

constexpr int64_t k_channels = 1000;

// Reaches over many octaves, as activations have them.
std::vector<float> reaches(uint32_t seed) {
    std::mt19937                       random(seed);
    std::lognormal_distribution<float> reach(-3.0f, 2.0f);
    std::vector<float>                 out(k_channels);
    std::generate(out.begin(), out.end(), [&] { return reach(random); });
    return out;
}

// Decodes a row; what it shows is added to `all`.
ChannelRow step(ChannelSequences & sequences, llama_seq_id seq, llama_pos pos, RowKind kind, std::vector<float> & all) {
    const ChannelRow row = sequences.begin(seq, pos, kind);
    if (row == ChannelRow::observed) {
        const std::vector<float> shown = reaches(uint32_t(pos));
        sequences.observe(seq, pos, 0, k_channels, [&](int64_t j) { return shown[size_t(j)]; });
        all.insert(all.end(), shown.begin(), shown.end());
    }
    return row;
}

void expect_quantiles(int n_warm_up) {
    for (const double share : { 0.02, 0.3, 0.5, 0.9 }) {
        ChannelSequences sequences;
        sequences.configure({ share });
        std::vector<float> all;
        llama_pos          pos = 0;
        expect(step(sequences, 0, pos++, RowKind::prompt, all) == ChannelRow::full, "a prompt shows nothing");
        for (int i = 0; i < std::max(n_warm_up, 16); ++i) {
            const RowKind kind = i < n_warm_up ? RowKind::warm_up : RowKind::skippable;
            expect(step(sequences, 0, pos++, kind, all) == ChannelRow::observed, "the first tokens show theirs");
        }
        expect(step(sequences, 0, pos++, RowKind::skippable, all) == ChannelRow::leaves_out,
               "the next leaves some out");
        std::sort(all.begin(), all.end());
        const float exact = all[size_t(share * double(all.size()))], found = sequences.threshold(0, 0);
        expect(std::fabs(found / exact - 1.0f) < 0.03f,
               "share " + std::to_string(share) + ": " + std::to_string(found) + " for " + std::to_string(exact));
    }
}

}  // namespace

int main() {
    expect_quantiles(30);
    expect_quantiles(3);
    expect_quantiles(0);

    ChannelSequences sequences;
    sequences.configure({ 0.5, 0.0 });
    std::vector<float> all;
    for (llama_pos pos = 0; pos < 20; ++pos) {
        step(sequences, 3, pos, RowKind::skippable, all);
    }
    const float first = sequences.threshold(3, 0);
    expect(sequences.threshold(3, 1) == 0.0f, "nothing is to be left out");
    expect(step(sequences, 3, 10, RowKind::skippable, all) == ChannelRow::observed &&
               sequences.threshold(3, 0) == first,
           "a row told again is what it was, and counts once");
    sequences.copied(3, 1);
    expect(sequences.begin(1, 20, RowKind::skippable) == ChannelRow::leaves_out && sequences.threshold(1, 0) == first,
           "a copy goes on as the original");
    sequences.begin(3, 21, RowKind::prompt);
    expect(sequences.begin(3, 22, RowKind::skippable) == ChannelRow::observed, "after a prompt it begins anew");
    sequences.restart(-1);
    expect(sequences.begin(1, 30, RowKind::skippable) == ChannelRow::observed, "all forgotten");
    return result();
}
