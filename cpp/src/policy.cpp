#include "policy.h"

#include <algorithm>
#include <cstring>

namespace ffnskip {
namespace {

// splitmix64 (Steele, Lea, Flood 2014): the finaliser of a counter, so a stream can start anywhere at no cost.
uint64_t mix(uint64_t x) {
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

// Uniform in [0, n) for small n: the high half of a 64 x 64 bit product of which 32 bits matter.
uint64_t below(uint64_t random, uint64_t n) {
    return ((random >> 32) * n) >> 32;
}

}  // namespace

uint64_t key_of(const Settings & settings) {
    uint64_t   key = 0;
    const auto add = [&](uint64_t value) { key = mix(key ^ value); };
    add(uint64_t(settings.policy));
    add(uint64_t(settings.cold_e));
    add(uint64_t(settings.warm_up_index));
    add(uint64_t(settings.max_skip));
    add(uint64_t(settings.check_interval));
    add(settings.seed);
    add(settings.every_row);
    add(uint64_t(settings.max_left_out));
    add(uint64_t(settings.budget_decay));
    for (int il = 0; il < settings.n_layer(); ++il) {
        uint32_t bits = 0;
        if (settings.checked[size_t(il)]) {
            std::memcpy(&bits, &settings.threshold[size_t(il)], sizeof(bits));
        }
        add(bits);
        add(uint64_t(settings.candidate[size_t(il)] | settings.always[size_t(il)] << 1 |
                     settings.checked[size_t(il)] << 2 | settings.attention[size_t(il)] << 3));
    }
    for (size_t i = 0; i < settings.channels.size(); ++i) {
        uint32_t bits = 0;
        if (!settings.channel_threshold.empty()) {
            std::memcpy(&bits, &settings.channel_threshold[i], sizeof(bits));
        }
        add(bits);
        add(settings.channels[i]);
    }
    uint64_t ratio = 0;
    std::memcpy(&ratio, &settings.channel_ratio, sizeof(ratio));
    add(ratio);
    return key | 1;
}

void TokenState::begin_full(const Settings & settings) {
    skip_.reset();
    check_.reset();
    may_skip_    = settings.every_row;
    follows_     = false;
    channels_    = false;
    leaves_gaps_ = settings.every_row && settings.leaves_attention_out();
    trip_layer_  = -1;
    if (settings.every_row) {
        skip_fixed(settings);
    }
}

void TokenState::skip_fixed(const Settings & settings) {
    for (int il = 0; il < settings.n_layer(); ++il) {
        skip_[size_t(block_of(il, BlockKind::ffn))]       = settings.always[size_t(il)];
        skip_[size_t(block_of(il, BlockKind::attention))] = settings.attention[size_t(il)];
    }
}

void TokenState::begin(const Settings & settings, int32_t position, int32_t token) {
    begin_full(settings);
    skip_fixed(settings);
    may_skip_ = true;
    channels_ = settings.leaves_channels_out();

    const int n_layer = settings.n_layer();
    if (settings.policy != Policy::random) {
        for (int il = 0; il < n_layer; ++il) {
            check_[size_t(il)] = settings.checked[size_t(il)];
        }
        return;
    }
    // Selection sampling: walk the candidates, take each with probability wanted / left.
    uint64_t random = mix(mix(settings.seed) ^ mix((uint64_t(uint32_t(position)) << 32) | uint32_t(token)));
    int      left   = int(std::count(settings.candidate.begin(), settings.candidate.end(), uint8_t(1)));
    int      wanted = settings.max_skip;
    for (int il = 0; il < n_layer && wanted > 0; ++il) {
        if (!settings.candidate[size_t(il)]) {
            continue;
        }
        random = mix(random);
        if (below(random, uint64_t(left)) < uint64_t(wanted)) {
            skip_[size_t(block_of(il, BlockKind::ffn))] = true;
            --wanted;
        }
        --left;
    }
}

void TokenState::begin_without(const Settings & settings, int n_left_out) {
    begin_full(settings);
    may_skip_ = leaves_gaps_ = n_left_out > 0;
    for (int il = settings.cold_s; il < settings.cold_e && n_left_out > 0; ++il) {
        if (settings.candidate[size_t(il)]) {
            skip_[size_t(block_of(il, BlockKind::attention))] = true;
            skip_[size_t(block_of(il, BlockKind::ffn))]       = true;
            --n_left_out;
        }
    }
}

bool TokenState::observe(const Settings & settings, int il, float similarity) {
    if (!(similarity >= settings.threshold[size_t(il)])) {
        return false;
    }
    trip_layer_ = il;
    check_.reset();
    skip_behind(settings, il);
    return true;
}

void TokenState::follow(const Settings & settings, int trip_layer) {
    follows_ = true;
    check_.reset();
    if (trip_layer_ < 0 && trip_layer >= 0) {
        trip_layer_ = trip_layer;
        skip_behind(settings, trip_layer);
    }
}

void TokenState::skip_behind(const Settings & settings, int trip_layer) {
    int left = settings.max_skip;
    for (int next = trip_layer + 1; next < settings.cold_e && left > 0; ++next) {
        const size_t block = size_t(block_of(next, BlockKind::ffn));
        if (settings.candidate[size_t(next)] && !skip_[block]) {
            skip_[block] = true;
            --left;
        }
    }
}

}  // namespace ffnskip
