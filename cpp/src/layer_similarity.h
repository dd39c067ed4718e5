// Cosine of what goes into a layer and what comes out of it: what Men et al. (2024) rank whole layers by. For
// calibration alone, which asks for it in a dense model: each residual comes to the host.
#pragma once

#include "buffers.h"

#include <cstdint>
#include <vector>

namespace ffnskip {

class LayerSimilarity {
public:
    explicit LayerSimilarity(Buffers & buffers) : buffers_(buffers) {}

    // Of an evaluation; nothing has gone into a layer yet.
    void begin() { now_.clear(); }

    // The residual, [n_embd, n_rows], as it goes into the first layer, and then as it comes out of each.
    // Returns: [n_rows], of the residual seen last and this one, valid until the next call; null where none was seen.
    const float * next(const ggml_tensor * residual);

private:
    Buffers &          buffers_;
    std::vector<float> now_, before_;  // [n_rows, n_embd]
    std::vector<float> similarity_;
};

}  // namespace ffnskip
