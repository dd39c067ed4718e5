#include "channel_products.h"

#include "graph_edit.h"
#include "tensor_names.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace ffnskip {

namespace {

// The root of the mean square of reaches; in several sums, so that compilers may add several numbers at once.
float mean_reach(const float * v, const float * norms, int64_t n) {
    constexpr int k_sums = 16;
    float         sums[k_sums]{};
    for (int64_t i = 0; i + k_sums <= n; i += k_sums) {
        for (int k = 0; k < k_sums; ++k) {
            sums[k] += v[i + k] * norms[i + k] * (v[i + k] * norms[i + k]);
        }
    }
    double sum = 0.0;
    for (int64_t i = n / k_sums * k_sums; i < n; ++i) {
        sum += double(v[i] * norms[i]) * double(v[i] * norms[i]);
    }
    for (const float part : sums) {
        sum += double(part);
    }
    return float(std::sqrt(sum / double(n)));
}

}  // namespace

ChannelProducts::ChannelProducts()  = default;
ChannelProducts::~ChannelProducts() = default;

void ChannelProducts::configure(const GraphMap & map, const std::vector<uint8_t> & wanted,
                                std::shared_ptr<ChannelStore> store) {
    inputs_.assign(map.inputs.size(), Input());
    products_.assign(map.blocks.size() * k_products_per_layer, Product());
    store_  = std::move(store);
    max_in_ = 0;
    for (size_t i = 0; i < inputs_.size(); ++i) {
        if (wanted.empty() || !wanted[i] || !map.inputs[i].sparse()) {
            continue;
        }
        Input & input = inputs_[i];
        for (const ggml_tensor * weight : map.inputs[i].weights) {
            input.matrices.push_back(&store_->matrix(weight));
        }
        input.normalised = map.inputs[i].normalised;
        input.n_in       = input.matrices.front()->layout.n_in;
        input.norms.assign(size_t(input.n_in), 0.0f);
        for (const ChannelMatrix * matrix : input.matrices) {
            const float * norms = channel_norms(matrix->layout, matrix->data);
            for (size_t j = 0; j < input.norms.size(); ++j) {
                input.norms[j] = std::hypot(input.norms[j], norms[j]);
            }
        }
        max_in_ = std::max(max_in_, input.n_in);
    }
    any_ = max_in_ > 0;
    bits_.resize(size_t(max_in_ + 31) / 32);
    scratch_.clear();

    operations_.reset(ggml_init({ (products_.size() + 1) * 2 * ggml_tensor_overhead(), nullptr, true }));
    ggml_tensor * none = ggml_new_tensor_1d(operations_.get(), GGML_TYPE_F32, 1);
    for (const Node & node : map.nodes) {
        if (node.product < 0 || !active(input_of(node.product))) {
            continue;
        }
        Product & product = products_[size_t(node.product)];
        product.all       = this;
        product.matrix    = &store_->matrix(node.weight);
        product.input     = input_of(node.product);
        product.operation =
            ggml_custom_4d(operations_.get(), GGML_TYPE_F32, 1, 1, 1, 1, &none, 1, compute, GGML_N_TASKS_MAX, &product);
    }
}

void ChannelProducts::reserve(int n_threads) {
    while (any_ && int(scratch_.size()) < n_threads) {
        scratch_.emplace_back(max_in_);
    }
}

int64_t ChannelProducts::bytes_read(int input, int64_t n_kept) const {
    int64_t bytes = 0;
    for (const ChannelMatrix * matrix : inputs_[size_t(input)].matrices) {
        bytes += matrix->layout.bytes_read(n_kept);
    }
    return bytes;
}

float ChannelProducts::scale(int input, const float * v) const {
    const Input & of = inputs_[size_t(input)];
    return of.normalised ? mean_reach(v, of.norms.data(), of.n_in) : 1.0f;
}

int64_t ChannelProducts::leave_out(int input, float threshold, float * v) {
    const int64_t n    = n_in(input);
    const int64_t kept = kernels_.select(v, norms(input), threshold * scale(input, v), n, bits_.data());
    for (int64_t j = 0; j < n; ++j) {
        v[j] = (bits_[size_t(j / 32)] >> j % 32 & 1) != 0 ? v[j] : 0.0f;
    }
    return kept;
}

void ChannelProducts::edit(ggml_tensor * node, int product, float threshold) {
    Product & becomes = products_[size_t(product)];
    becomes.threshold = threshold;
    becomes.n_kept    = 0;
    replace(node, becomes.operation);
}

// Called by each of ggml's threads that computes the node. All of them find the same channels.
void ChannelProducts::compute(ggml_tensor * node, int ith, int nth, void * data) {
    Product &               product = *static_cast<Product *>(data);
    const ChannelProducts & all     = *product.all;
    const ChannelLayout &   layout  = product.matrix->layout;
    nth                             = std::min(nth, int(all.scratch_.size()));
    if (ith >= nth) {
        return;
    }
    const auto *   v     = static_cast<const float *>(node->src[1]->data);
    ChannelInput & input = all.scratch_[size_t(ith)];
    const int64_t  kept =
        input.keep(all.kernels_, layout, v, all.norms(product.input), product.threshold * all.scale(product.input, v));
    if (ith == 0) {
        product.n_kept = kept;
    }
    const auto [first, last] = channel_slice(layout, ith, nth);
    all.kernels_.multiply(layout, product.matrix->data, input.kept(), first, last, static_cast<float *>(node->data));
}

}  // namespace ffnskip
