// Products that leave input channels out: what is needed for each of a model's inputs, and the operation that a product
// of a few rows, or of rows with experts, becomes.
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
    int64_t n_in(int input) const { return inputs_[size_t(input)].n_in; }
    bool    of_experts(int input) const { return inputs_[size_t(input)].of_experts; }
    // Channels of a row: n_in, of each expert that it uses.
    int64_t n_channels(int input) const { return n_in(input) * inputs_[size_t(input)].n_used; }
    // Weights that the products of a row read, where each matrix keeps so many channels.
    int64_t bytes_read(int input, int64_t n_kept) const;

    // How far the channels of `v`, [n_in], reach in the matrices of this expert, or in the only ones: number 0.
    void reach(int input, int64_t expert, const float * v, float * to) const;
    // Sets to zero the channels of `v` that reach less than the threshold; returns how many are left.
    int64_t leave_out(int input, float threshold, float * v);

    // Rows of a batch that edit() takes, where they have no experts.
    int few_rows() const { return kernels_.few_rows; }

    // Has a product computed without the channels that reach less than the threshold of their row: of a few rows, or
    // with experts of any number.
    void edit(ggml_tensor * node, int product, const float * thresholds);
    // The product of one row, [n_in], with this expert, into `y`, [n_out]; returns the channels kept.
    int64_t multiply(int product, int64_t expert, float threshold, const float * v, float * y) const;
    int64_t n_out(int product) const { return products_[size_t(product)].matrix->layout.n_out; }
    // Channels that it kept of a row, once it was computed.
    int64_t n_kept(int product, int64_t row) const;

private:
    struct Context {
        void operator()(ggml_context * context) const { ggml_free(context); }
    };

    struct Input {
        int64_t                            n_in       = 0;  // 0: not active
        int64_t                            n_used     = 1;  // matrices of each weight that a row is multiplied with
        bool                               of_experts = false;
        bool                               normalised = false;
        std::vector<float>                 norms;  // [n_experts, n_in]
        std::vector<const ChannelMatrix *> matrices;
    };

    struct Product {
        const ChannelProducts * all       = nullptr;
        const ChannelMatrix *   matrix    = nullptr;
        int                     input     = -1;
        ggml_tensor *           operation = nullptr;  // what it becomes
        std::vector<float>      thresholds;           // of each row
        int64_t                 n_used = 1;           // as now computed
        std::vector<int64_t>    n_kept;               // of each row and expert used
    };

    struct Factors {
        int64_t       expert;
        const float * v;
    };

    static void    compute(ggml_tensor * node, int ith, int nth, void * product);
    static void    compute_experts(ggml_tensor * node, int ith, int nth, void * product);
    static Factors factors(const ggml_tensor * node, const Product & product, int64_t i);

    const float * norms(int input, int64_t expert) const;
    // What the reaches of `v` are relative to.
    float scale(int input, int64_t expert, const float * v) const;

    const ChannelKernels &                 kernels_ = channel_kernels();
    std::shared_ptr<ChannelStore>          store_;
    std::vector<Input>                     inputs_;
    std::vector<Product>                   products_;  // by number
    bool                                   any_    = false;
    int64_t                                max_in_ = 0;
    mutable std::vector<ChannelInput>      scratch_;  // [n_threads, few_rows()]
    std::vector<uint32_t>                  bits_;
    std::unique_ptr<ggml_context, Context> operations_;
};

}  // namespace ffnskip
