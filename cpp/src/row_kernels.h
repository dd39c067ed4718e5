// What a device does with rows of activations in its own memory, so that no row has to come to the host. ggml-cuda/ has
// the one there is; this header knows neither CUDA nor ggml.
#pragma once

#include "similarity.h"

#include <cstdint>

namespace ffnskip {

// [n_rows, n] float32; row r starts r * stride bytes behind `data`, an address of the host or of a device.
struct Rows {
    float * data;
    int64_t n;
    int64_t n_rows;
    int64_t stride;

    FFNSKIP_HOST_DEVICE float * row(int64_t r) const {
        return reinterpret_cast<float *>(reinterpret_cast<char *>(data) + r * stride);
    }
};

// Work is enqueued, and done in the order of the calls by the time finish() returns. Whoever calls makes sure that the
// rows are ready before, and leaves none of its own work unfinished. Memory for the results grows with n_rows, up to
// the largest seen. Throws std::runtime_error where the device fails.
class RowKernels {
public:
    virtual ~RowKernels() = default;

    // The cosine of each row of the pair of `a` and `b`, as similarity.h has it.
    virtual void cosine(Pair pair, const Rows & a, const Rows & b) = 0;

    // Rows with mask[r] != 0, [n_rows] on the host, become zero. Once per finish().
    virtual void zero(const Rows & rows, const uint8_t * mask) = 0;

    // A copy in the device's memory, which is there until the next keep().
    virtual Rows keep(const Rows & rows) = 0;

    // Copies rows to the host, [n_rows, n].
    virtual void read(const Rows & rows, float * to) = 0;

    // Waits for all of it, once. Returns what cosine() found, [n_rows], until the next call of it.
    virtual const float * finish() = 0;
};

}  // namespace ffnskip
