#include "channel_products.h"

#include "graph_edit.h"
#include "tensor_names.h"

#include <algorithm>
#include <cmath>
#include <numeric>
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

// To the norms that are there, of other matrices with the same input: [n_experts, n_in].
void add_norms(const ChannelMatrix & matrix, std::vector<float> & norms) {
    const int64_t n_in = matrix.layout.n_in;
    for (int64_t expert = 0; expert < matrix.n_experts; ++expert) {
        const float * more = channel_norms(matrix.layout, matrix.of(expert));
        float *       sum  = norms.data() + expert * n_in;
        for (int64_t j = 0; j < n_in; ++j) {
            sum[j] = std::hypot(sum[j], more[j]);
        }
    }
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
        input.of_experts = map.inputs[i].n_experts_used > 0;
        input.n_used     = input.of_experts ? map.inputs[i].n_experts_used : 1;
        input.normalised = map.inputs[i].normalised;
        input.n_in       = input.matrices.front()->layout.n_in;
        input.norms.assign(size_t(input.n_in * input.matrices.front()->n_experts), 0.0f);
        for (const ChannelMatrix * matrix : input.matrices) {
            add_norms(*matrix, input.norms);
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
            ggml_custom_4d(operations_.get(), GGML_TYPE_F32, 1, 1, 1, 1, &none, 1,
                           is_of_experts(node.product) ? compute_experts : compute, GGML_N_TASKS_MAX, &product);
    }
}

void ChannelProducts::reserve(int n_threads) {
    while (any_ && int(scratch_.size()) < n_threads * few_rows()) {
        scratch_.emplace_back(max_in_);
    }
}

int64_t ChannelProducts::bytes_read(int input, int64_t n_kept) const {
    int64_t bytes = 0;
    for (const ChannelMatrix * matrix : inputs_[size_t(input)].matrices) {
        bytes += matrix->layout.bytes_read(n_kept) * inputs_[size_t(input)].n_used;
    }
    return bytes;
}

const float * ChannelProducts::norms(int input, int64_t expert) const {
    return inputs_[size_t(input)].norms.data() + expert * n_in(input);
}

float ChannelProducts::scale(int input, int64_t expert, const float * v) const {
    return inputs_[size_t(input)].normalised ? mean_reach(v, norms(input, expert), n_in(input)) : 1.0f;
}

void ChannelProducts::reach(int input, int64_t expert, const float * v, float * to) const {
    const float * weight = norms(input, expert);
    const float   part   = 1.0f / scale(input, expert, v);
    for (int64_t j = 0; j < n_in(input); ++j) {
        to[j] = std::fabs(v[j]) * weight[j] * part;
    }
}

int64_t ChannelProducts::leave_out(int input, float threshold, float * v) {
    const int64_t n    = n_in(input);
    const int64_t kept = kernels_.select(v, norms(input, 0), threshold * scale(input, 0, v), n, bits_.data());
    for (int64_t j = 0; j < n; ++j) {
        v[j] = (bits_[size_t(j / 32)] >> j % 32 & 1) != 0 ? v[j] : 0.0f;
    }
    return kept;
}

void ChannelProducts::edit(ggml_tensor * node, int product, const float * thresholds) {
    Product &     becomes = products_[size_t(product)];
    const bool    experts = node->op == GGML_OP_MUL_MAT_ID;
    const int64_t n_rows  = experts ? node->ne[2] : node->ne[1];
    becomes.n_used        = experts ? node->ne[1] : 1;
    becomes.thresholds.assign(thresholds, thresholds + n_rows);
    becomes.n_kept.assign(size_t(n_rows * becomes.n_used), 0);
    replace(node, becomes.operation);
}

int64_t ChannelProducts::multiply(int product, int64_t expert, float threshold, const float * v, float * y) const {
    const Product &       of     = products_[size_t(product)];
    const ChannelLayout & layout = of.matrix->layout;
    ChannelInput &        kept   = scratch_.front();
    const int64_t         n_kept =
        kept.keep(kernels_, layout, v, norms(of.input, expert), threshold * scale(of.input, expert, v));
    kernels_.multiply(layout, of.matrix->of(expert), &kept.kept(), 1, 0, layout.n_groups, y);
    return n_kept;
}

int64_t ChannelProducts::n_kept(int product, int64_t row) const {
    const Product & of    = products_[size_t(product)];
    const auto      first = of.n_kept.begin() + row * of.n_used;
    return std::accumulate(first, first + of.n_used, int64_t(0));
}

// Called by each of ggml's threads that computes the node. They share the outputs evenly, and each finds the channels of
// all rows.
void ChannelProducts::compute(ggml_tensor * node, int ith, int nth, void * data) {
    Product &               product = *static_cast<Product *>(data);
    const ChannelProducts & all     = *product.all;
    const ChannelLayout &   layout  = product.matrix->layout;
    nth                             = std::min(nth, int(all.scratch_.size()) / all.few_rows());
    if (ith >= nth) {
        return;
    }
    const float * norms  = all.norms(product.input, 0);
    const int     n_rows = int(product.n_kept.size());
    KeptChannels  kept[k_max_channel_rows];
    for (int r = 0; r < n_rows; ++r) {
        const auto *   row   = static_cast<const char *>(node->src[1]->data) + size_t(r) * node->src[1]->nb[1];
        const auto *   v     = reinterpret_cast<const float *>(row);
        ChannelInput & input = all.scratch_[size_t(ith * all.few_rows() + r)];
        const int64_t  n =
            input.keep(all.kernels_, layout, v, norms, product.thresholds[size_t(r)] * all.scale(product.input, 0, v));
        kept[r] = input.kept();
        if (ith == 0) {
            product.n_kept[size_t(r)] = n;
        }
    }
    const ChannelSlice slice = channel_slice(layout, ith, nth);
    all.kernels_.multiply(layout, product.matrix->of(0), kept, n_rows, slice.first, slice.last,
                          static_cast<float *>(node->data));
}

// The threads share the outputs of all rows and experts used evenly; those that share the outputs of one find the same
// channels.
void ChannelProducts::compute_experts(ggml_tensor * node, int ith, int nth, void * data) {
    Product &               product = *static_cast<Product *>(data);
    const ChannelProducts & all     = *product.all;
    const ChannelLayout &   layout  = product.matrix->layout;
    nth                             = std::min(nth, int(all.scratch_.size()) / all.few_rows());
    if (ith >= nth) {
        return;
    }
    ChannelInput & kept     = all.scratch_[size_t(ith * all.few_rows())];
    const int64_t  n_groups = int64_t(product.n_kept.size()) * layout.n_groups;
    const int64_t  end      = n_groups * (ith + 1) / nth;
    for (int64_t begin = n_groups * ith / nth, next; begin < end; begin = next) {
        const int64_t i      = begin / layout.n_groups;
        const int64_t first  = begin - i * layout.n_groups;
        const Factors of     = factors(node, product, i);
        const float   reach  = product.thresholds[size_t(i / product.n_used)];
        const int64_t n_kept = kept.keep(all.kernels_, layout, of.v, all.norms(product.input, of.expert),
                                         reach * all.scale(product.input, of.expert, of.v));
        if (first == 0) {
            product.n_kept[size_t(i)] = n_kept;
        }
        next = std::min(end, (i + 1) * layout.n_groups);
        all.kernels_.multiply(layout, product.matrix->of(of.expert), &kept.kept(), 1, first, first + next - begin,
                              static_cast<float *>(node->data) + i * layout.n_out);
    }
}

// Of the i-th pair of a row and an expert that it uses.
ChannelProducts::Factors ChannelProducts::factors(const ggml_tensor * node, const Product & product, int64_t i) {
    const auto *        input = static_cast<const char *>(node->src[1]->data);
    const ggml_tensor * ids   = node->src[2];
    const int64_t       row = i / product.n_used, used = i % product.n_used;
    const auto * id = static_cast<const char *>(ids->data) + size_t(row) * ids->nb[1] + size_t(used) * ids->nb[0];
    // One input for all experts, or one for each.
    input += size_t(row) * node->src[1]->nb[2] + size_t(used % node->src[1]->ne[1]) * node->src[1]->nb[1];
    return { *reinterpret_cast<const int32_t *>(id), reinterpret_cast<const float *>(input) };
}

}  // namespace ffnskip
