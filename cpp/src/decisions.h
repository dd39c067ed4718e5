// What the checked tokens of a sequence decided, for those to do likewise that are not checked (Config::check_interval).
//
// Tokens are counted as generated: the first one after a prompt is 0. So a decision stays what it was where positions are
// shifted.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

namespace ffnskip {

struct Decision {
    int32_t token      = 0;   // generated tokens before it
    int32_t trip_layer = -1;  // -1: did not trip
};

class Decisions {
public:
    Decisions() = default;
    Decisions(uint64_t key, std::vector<Decision> taken) : key_(key), taken_(std::move(taken)) {}

    // The last one before token `token`, taken under settings of this `key`; null where there is none.
    const Decision * before(int64_t token, uint64_t key) const {
        const auto found =
            std::find_if(taken_.rbegin(), taken_.rend(), [&](const Decision & d) { return d.token < token; });
        return key == key_ && found != taken_.rend() ? &*found : nullptr;
    }

    // In place of those of other settings, and of `token` and what followed it.
    void add(Decision decision, uint64_t key) {
        cut(key == key_ ? decision.token : 0);
        key_ = key;
        taken_.push_back(decision);
    }

    // Token `token` and those behind it are gone.
    void cut(int64_t token) {
        while (!taken_.empty() && taken_.back().token >= token) {
            taken_.pop_back();
        }
    }

    uint64_t                      key() const { return key_; }
    const std::vector<Decision> & taken() const { return taken_; }

private:
    uint64_t              key_ = 0;  // of the settings
    std::vector<Decision> taken_;    // in ascending order
};

}  // namespace ffnskip
