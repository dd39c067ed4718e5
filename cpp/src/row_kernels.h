// What a device does with rows of activations in its own memory, so that no row has to come to the host. ggml-cuda/ has the
// one there is; this header knows neither CUDA nor ggml.
#pragma once

#include "cosine_sums.h"

#include <cstdint>

namespace ffnskip {

// [n_rows, n] float32; row r starts r * stride bytes behind `data`, an address of the device.
struct DeviceRows {
    float * data;
    int64_t n;
    int64_t n_rows;
    int64_t stride;
};

// Work is enqueued, and done in the order of the calls by the time finish() returns. Whoever calls makes sure that the
// rows are ready before, and leaves none of its own work unfinished. Memory for the results grows with n_rows, up to the
// largest seen. Throws std::runtime_error where the device fails.
class RowKernels {
public:
    virtual ~RowKernels() = default;

    // The cosine of each row of the pair of `a` and `b`, as similarity.h has it.
    virtual void cosine(Pair pair, const DeviceRows & a, const DeviceRows & b) = 0;

    // Rows with mask[r] != 0, [n_rows] on the host: overwritten with `from`, or with zeros. Once per finish().
    virtual void copy_rows(const DeviceRows & from, const DeviceRows & to, const uint8_t * mask) = 0;
    virtual void zero_rows(const DeviceRows & to, const uint8_t * mask) = 0;

    // A copy in the device's memory, which is there until the next keep().
    virtual DeviceRows keep(const DeviceRows & rows) = 0;

    // Copies rows to the host, [n_rows, n].
    virtual void read(const DeviceRows & rows, float * to) = 0;

    // Waits for all of it, once. Returns what cosine() found, [n_rows], until the next call of it.
    virtual const float * finish() = 0;
};

}  // namespace ffnskip
