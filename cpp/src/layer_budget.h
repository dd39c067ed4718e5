// How many layers the tokens of a sequence have left out (policy skip_decode). A left out layer has no keys and values of the
// token, so no token behind it may run that layer: the number never falls, as long as the memory holds the token.
#pragma once

#include <llama.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace ffnskip {

class LayerBudget {
public:
    // The first token that left out so many layers.
    struct Step {
        llama_pos pos        = 0;
        int32_t   n_left_out = 0;
    };

    // Of a sequence of which nothing is known: each of its tokens may have left out all that a token may.
    LayerBudget() : steps_{ { 0, INT32_MAX } } {}
    explicit LayerBudget(std::vector<Step> steps) : steps_(std::move(steps)) {}

    // What the tokens before `pos` have left out; `most` where that is not known.
    int32_t before(llama_pos pos, int32_t most) const {
        const auto found =
            std::find_if(steps_.rbegin(), steps_.rend(), [&](const Step & step) { return step.pos < pos; });
        return found == steps_.rend() ? 0 : std::min(found->n_left_out, most);
    }

    // Throws std::logic_error where the token at `pos` would attend to keys and values that are not there.
    void add(llama_pos pos, int32_t n_left_out, int32_t most) {
        const int32_t least = before(pos, most);
        if (n_left_out < least) {
            throw std::logic_error("the token at position " + std::to_string(pos) + " leaves out " +
                                   std::to_string(n_left_out) + " layers, and those before it " +
                                   std::to_string(least));
        }
        if (n_left_out > least) {
            steps_.push_back({ pos, n_left_out });
        }
    }

    // The tokens from `pos` on are gone.
    void cut(llama_pos pos) {
        while (!steps_.empty() && steps_.back().pos >= pos) {
            steps_.pop_back();
        }
    }

    // Moves what is told of each position.
    template <typename Move> void move(Move move_pos) {
        for (Step & step : steps_) {
            move_pos(step.pos);
        }
    }

    const std::vector<Step> & steps() const { return steps_; }

private:
    std::vector<Step> steps_;  // in ascending order of both
};

}  // namespace ffnskip
