// Cosine similarity of the residual before and after an FFN block: the paper's section 3.1, Figure 2.
#pragma once

#include <cstdint>

namespace ffnskip {

// cos(a, b) of two float32 vectors of n elements, accumulated in float32. 0 where either is all zeros;
// NaN where an element is not finite or a sum overflows, which no threshold is ever reached by.
float cosine(const float * a, const float * b, int64_t n);

// cos(h, h + f) without writing the sum: for adds that overwrite h.
float cosine_with_sum(const float * h, const float * f, int64_t n);

// cos(out - f, out): for parallel attention and FFN, where h = out - f never exists on its own.
float cosine_with_difference(const float * out, const float * f, int64_t n);

}  // namespace ffnskip
