// Compares rows of [n_embd, n_rows] float32 activations, and takes the FFN's part out of those that skip, wherever they
// are.
//
// Each tensor is looked up where it lies. Rows on the host are used in place. Rows of one device that has kernels never
// leave it. Any others, such as h on one device and f on the next, come to the host and go back, but only the rows that
// check or skip: a server has one of those among hundreds of rows of a prompt.
#pragma once

#include "buffers.h"

#include <cstdint>
#include <vector>

namespace ffnskip {

// What the rows of an ubatch want of a block that is computed. A row may want neither.
struct RowTasks {
    std::vector<uint8_t> checks;  // [n_rows] 1: wants its similarity
    std::vector<uint8_t> skips;   // [n_rows] 1: must come out as if the block had not been computed
    int64_t              n_rows     = 0;
    bool                 any_checks = false;
    bool                 any_skips  = false;
};

// f, the FFN's part, is seen before it is added to h, and becomes zero in the rows that skip. The similarity is that of
// h and h + f: [n_rows], valid for the rows that check, until the next call.
class Comparison {
public:
    explicit Comparison(Buffers & buffers) : buffers_(buffers) {}

    // f was computed, and h is there.
    const float * before_add(const ggml_tensor * h, ggml_tensor * f, const RowTasks & tasks);

    // f was computed, and will be gone when out = h + f is known.
    void          keep(ggml_tensor * f, const RowTasks & tasks);
    const float * after_add(const ggml_tensor * out, const RowTasks & tasks);

private:
    RowKernels * shared_kernels(const ggml_tensor * a, const ggml_tensor * b);
    Rows         copy(const ggml_tensor * tensor, std::vector<float> & scratch, const RowTasks & tasks);
    Rows         on_host(const ggml_tensor * tensor, std::vector<float> & scratch, const RowTasks & tasks);
    void         zero_skipping(const Rows & f, ggml_tensor * tensor, const RowTasks & tasks);
    template <Pair pair> const float * compare(const Rows & a, const Rows & b, const RowTasks & tasks);

    Buffers &          buffers_;
    std::vector<float> scratch_[2];
    std::vector<float> similarity_;

    // What keep() kept, on the device whose kernels these are, or on the host.
    RowKernels *       kept_by_ = nullptr;
    Rows               kept_{};
    std::vector<float> kept_on_host_;
};

}  // namespace ffnskip
