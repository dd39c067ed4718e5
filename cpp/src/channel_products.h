// Products that leave input channels out: what is needed for each of a model's inputs, and the operation that a product
// of one row becomes.
#pragma once

#include "channels/channel_kernels.h"
#include "channels/channel_store.h"
#include "graph_map.h"

#include <ggml.h>

#include <cstdint>
#include <memory>
#include <vector>

namespace ffnskip {

class ChannelProducts {
public:
    ChannelProducts();
    ~ChannelProducts();

    // Channels may be left out of the inputs for which `wanted`, [n_inputs], is 1; the store has their weights.
    void configure(const GraphMap & map, const std::vector<uint8_t> & wanted, std::shared_ptr<ChannelStore> store);
    // So many threads may compute a node.
    void reserve(int n_threads);

    int  n_inputs() const { return int(inputs_.size()); }
    bool any() const { return any_; }
    bool active(int input) const { return inputs_[size_t(input)].n_in > 0; }
    // ---- of an active input ----
    int64_t       n_in(int input) const { return inputs_[size_t(input)].n_in; }
    const float * norms(int input) const { return inputs_[size_t(input)].norms.data(); }
    // Weights that its products read, where they keep so many channels.
    int64_t bytes_read(int input, int64_t n_kept) const;

    // What the reaches of `v`, [n_in], are relative to.
    float scale(int input, const float * v) const;
    // Sets to zero the channels of `v` that reach less than threshold * scale(); returns how many are left.
    int64_t leave_out(int input, float threshold, float * v);

    // Has a product of one row computed without the channels that leave_out() would take.
    void edit(ggml_tensor * node, int product, float threshold);
    // Channels that the product kept, once it was computed.
    int64_t n_kept(int product) const { return products_[size_t(product)].n_kept; }

private:
    struct Context {
        void operator()(ggml_context * context) const { ggml_free(context); }
    };

    struct Input {
        int64_t                            n_in       = 0;  // 0: not active
        bool                               normalised = false;
        std::vector<float>                 norms;
        std::vector<const ChannelMatrix *> matrices;
    };

    struct Product {
        const ChannelProducts * all       = nullptr;
        const ChannelMatrix *   matrix    = nullptr;
        int                     input     = -1;
        ggml_tensor *           operation = nullptr;  // what it becomes
        float                   threshold = 0.0f;     // of the row
        int64_t                 n_kept    = 0;        // of the row
    };

    static void compute(ggml_tensor * node, int ith, int nth, void * product);

    const ChannelKernels &                 kernels_ = channel_kernels();
    std::shared_ptr<ChannelStore>          store_;
    std::vector<Input>                     inputs_;
    std::vector<Product>                   products_;  // by number
    bool                                   any_    = false;
    int64_t                                max_in_ = 0;
    mutable std::vector<ChannelInput>      scratch_;  // [n_threads]
    std::vector<uint32_t>                  bits_;
    std::unique_ptr<ggml_context, Context> operations_;
};

}  // namespace ffnskip
