// Compares rows of [n_embd, n_rows] float32 activations, and takes the FFN's part out of those that skip, wherever they are.
//
// Each tensor is looked up where it lies. Rows on the host are used in place. Rows of one device that has kernels never leave
// it. Any others, such as h on one device and h + f on the next, come to the host and go back, but only the rows that check or
// skip: a server has one of those among hundreds of rows of a prompt.
#pragma once

#include "memory.h"

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

// Similarities are [n_rows], valid for the rows that check, until the next call.
class Rows {
public:
    explicit Rows(Memory & memory) : memory_(memory) {}

    // The residual add was computed, out = h + f. Skipping rows get h back.
    const float * after_add(const ggml_tensor * h, ggml_tensor * out, const RowTasks & tasks);

    // f was computed, and will be added to h, over h. It leaves the skipping rows.
    const float * before_add(const ggml_tensor * h, ggml_tensor * f, const RowTasks & tasks);

    // f was computed, and will be gone when the output of its layer, out = h + f, is known. It leaves the skipping rows.
    void          keep(ggml_tensor * f, const RowTasks & tasks);
    const float * after_layer(const ggml_tensor * out, const RowTasks & tasks);

private:
    // Rows where the host can use them.
    struct View {
        char *  data;
        int64_t n;
        int64_t stride;

        float * row(int64_t r) const { return reinterpret_cast<float *>(data + r * stride); }
    };

    RowKernels * shared_kernels(const ggml_tensor * a, const ggml_tensor * b);
    View         view(const ggml_tensor * tensor, std::vector<float> & scratch, const RowTasks & tasks);
    void         write_back(const View & view, ggml_tensor * tensor, const RowTasks & tasks);
    void         zero_skipping(const View & f, ggml_tensor * tensor, const RowTasks & tasks);

    template <typename Cosine> const float * compare(const RowTasks & tasks, Cosine cosine);

    Memory &           memory_;
    std::vector<float> scratch_[2];
    std::vector<float> similarity_;

    // What keep() kept: on a device, or on the host.
    RowKernels *       kept_by_ = nullptr;
    DeviceRows         kept_on_device_{};
    std::vector<float> kept_;  // [n_rows, n]
};

}  // namespace ffnskip
