// Similarity of rows in the memory of a CUDA device, without copying them to the host.
//
// cos(x, y) = sum(x * y) / sqrt(sum(x * x) * sum(y * y)) for every row of [n_rows, n] float32, in one launch: a block
// owns a row, a thread every 256th group of four elements of it. Sums are float32, added thread by thread, then by warp
// shuffles, in an order that depends on n and on the alignment of the row alone, so the result is deterministic and
// that of a row does not depend on the others. Rows are read 16 bytes at a time where both are aligned to that, else 4.
// What is not finite, zero or rounded beyond 1 comes out as in cpp/src/similarity.h.
//
// All work is done on a non-blocking stream of its own; results arrive in mapped pinned host memory.
#pragma once

#include "row_kernels.h"

#include <memory>

namespace ffnskip {

// For the device that `data`, an address in its memory, belongs to. One object per thread of use: it has no lock.
// Throws std::runtime_error where the device can't be used.
std::unique_ptr<RowKernels> make_cuda_kernels(const void * data);

}  // namespace ffnskip
