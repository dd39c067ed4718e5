// Knows where an evaluation is: which node of which known graph structure comes next. A graph of unknown structure is
// learnt while it goes by.
#pragma once

#include "graph_map.h"

#include <vector>

namespace ffnskip {

class GraphFollower {
public:
    // The one structure that is known of a model.
    void reset(GraphMap map);

    // An evaluation begins.
    void begin();
    // Its next node, unedited; null where no known structure goes on with it. From then on this evaluation is learnt,
    // and what was edited of it has been restored.
    const Node * next(ggml_tensor * node);

    bool learning() const { return learning_; }
    // The evaluation being learnt has ended. Its structure is known now.
    const GraphMap & keep_learnt();

    // Of the structure that is followed.
    const FoundBlock & block(int number) const { return maps_.front().blocks[size_t(number)]; }
    const Input &      input(int number) const { return maps_.front().inputs[size_t(number)]; }
    // Node number `index` of this evaluation, which has passed.
    ggml_tensor * seen(int index) const { return seen_[size_t(index)]; }

private:
    void remember(GraphMap map);
    bool goes_on(const GraphMap & map, const ggml_tensor * node) const;
    bool goes_on_elsewhere(const ggml_tensor * node);

    std::vector<GraphMap>      maps_;  // at least one; most recently followed first
    std::vector<ggml_tensor *> seen_;  // [n_seen] nodes of this evaluation; grows with the maps
    size_t                     n_seen_   = 0;
    bool                       learning_ = false;
    GraphLearner               learner_{ 0 };
};

}  // namespace ffnskip
