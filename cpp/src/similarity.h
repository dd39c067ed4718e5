// Cosine similarity of the residual before and after an FFN block: the paper's section 3.1, Figure 2.
#pragma once

#include "cosine_sums.h"

#include <cstdint>

namespace ffnskip {

// The cosine of the pair of two float32 vectors of n elements, accumulated in float32. 0 where a vector is all zeros;
// NaN where an element is not finite or a sum overflows, which no threshold is ever reached by.
float cosine(Pair pair, const float * a, const float * b, int64_t n);

}  // namespace ffnskip
