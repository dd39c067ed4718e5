#include "graph_follower.h"

#include "graph_edit.h"

#include <algorithm>
#include <utility>

namespace ffnskip {
namespace {

constexpr size_t k_max_maps = 8;  // graph structures remembered: with and without LoRA, control vector, offloading

}  // namespace

void GraphFollower::reset(GraphMap map) {
    maps_.clear();
    remember(std::move(map));
}

void GraphFollower::begin() {
    n_seen_   = 0;
    learning_ = false;
}

const Node * GraphFollower::next(ggml_tensor * node) {
    if (!learning_ && (goes_on(maps_.front(), node) || goes_on_elsewhere(node))) {
        seen_[n_seen_] = node;
        return &maps_.front().nodes[n_seen_++];
    }
    if (!learning_) {
        learning_ = true;
        learner_  = GraphLearner(maps_.front().n_layer());
        for (size_t i = 0; i < n_seen_; ++i) {
            restore(seen_[i]);
            learner_.add(seen_[i]);
        }
    }
    learner_.add(node);
    return nullptr;
}

const GraphMap & GraphFollower::keep_learnt() {
    learning_ = false;
    remember(learner_.finish());
    return maps_.front();
}

void GraphFollower::remember(GraphMap map) {
    seen_.resize(std::max(seen_.size(), map.nodes.size()));
    maps_.insert(maps_.begin(), std::move(map));
    maps_.resize(std::min(maps_.size(), k_max_maps));
}

bool GraphFollower::goes_on(const GraphMap & map, const ggml_tensor * node) const {
    return n_seen_ < map.nodes.size() && matches(map.nodes[n_seen_], node, seen_.data());
}

// Looks for another known structure that begins as this evaluation did and goes on with `node`. Nodes that this evaluation
// may have edited are compared as they were before.
bool GraphFollower::goes_on_elsewhere(const ggml_tensor * node) {
    const auto was = [&](const ggml_tensor * seen, const Node & expected) {
        ggml_tensor original = *seen;
        restore(&original);
        return matches(expected, &original, seen_.data());
    };
    const auto found = std::find_if(maps_.begin(), maps_.end(), [&](const GraphMap & map) {
        return goes_on(map, node) &&
               std::equal(seen_.begin(), seen_.begin() + std::ptrdiff_t(n_seen_), map.nodes.begin(), was);
    });
    if (found == maps_.end()) {
        return false;
    }
    std::rotate(maps_.begin(), found, found + 1);
    return true;
}

}  // namespace ffnskip
