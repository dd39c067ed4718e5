#include "channel_evaluation.h"

#include "ffnskip/errors.h"
#include "tensor_names.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <string>
#include <utility>

namespace ffnskip {
namespace {

// Of each kind of input a power of one share is kept: near the best split of what is left out, however much that is, on
// SmolLM2-135M and Gemma 3 270M.
constexpr double k_power[k_input_kinds] = { 1.2, 1.35, 1.0, 2.0 };

// [n_inputs] the share of its channels that each input leaves out, so that `ratio` of the bytes of all weights is not read.
std::vector<double> shares_left_out(const std::vector<Recorder::Channels> & inputs, double ratio) {
    std::vector<double> out(inputs.size());
    double              least = 0.0, most = 1.0;  // of the share whose powers are kept
    for (int round = 0; round < 40 && ratio > 0.0; ++round) {
        const double share = (least + most) / 2.0;
        double       all = 0.0, not_read = 0.0;
        for (size_t i = 0; i < inputs.size(); ++i) {
            out[i] = 1.0 - std::pow(share, k_power[i % k_input_kinds]);
            all += double(inputs[i].bytes);
            not_read += out[i] * double(inputs[i].bytes - inputs[i].bytes_least);
        }
        (not_read < ratio * all ? most : least) = share;
    }
    return out;
}

}  // namespace

void ChannelEvaluation::set_model(const GraphMap & map, const std::vector<uint8_t> & wanted,
                                  std::shared_ptr<ChannelStore> store) {
    products_.configure(map, wanted, std::move(store));
    product_of_.assign(map.inputs.size(), -1);
    for (const Node & node : map.nodes) {
        if (node.product >= 0 && products_.active(input_of(node.product))) {
            product_of_[size_t(input_of(node.product))] = node.product;
        }
    }
    edited_.reserve(product_of_.size());
    any_ = false;
}

bool ChannelEvaluation::has(const GraphMap & map, const std::vector<uint8_t> & wanted) const {
    for (size_t i = 0; i < wanted.size(); ++i) {
        if (wanted[i] && map.inputs[i].sparse() && (int(i) >= products_.n_inputs() || !products_.active(int(i)))) {
            return false;
        }
    }
    return true;
}

ChannelEvaluation::Inputs ChannelEvaluation::inputs_of(const GraphMap & map, const Settings & settings) const {
    Inputs inputs;
    inputs.channels.resize(map.inputs.size());
    if (!settings.leaves_channels_out()) {
        return inputs;
    }
    for (int i = 0; i < products_.n_inputs(); ++i) {
        if (is_active(settings, i)) {
            inputs.channels[size_t(i)] = { products_.n_channels(i), uint64_t(products_.bytes_read(i, 0)),
                                           uint64_t(products_.bytes_read(i, products_.n_in(i))) };
        }
    }
    if (settings.channel_threshold.empty()) {  // found for each sequence
        inputs.left_out = shares_left_out(inputs.channels, settings.channel_ratio);
    }
    count_the_others(map, settings, inputs);
    return inputs;
}

void ChannelEvaluation::use(const Inputs & inputs, bool forget) {
    any_ = settings_.leaves_channels_out() && products_.any();
    sequences_.configure(inputs.left_out, forget);
    recorder_.set_channels(inputs.channels);
}

// Weights of the FFN, and of attention where its channels are left out anywhere, are read where all channels are kept.
void ChannelEvaluation::count_the_others(const GraphMap & map, const Settings & settings, Inputs & inputs) const {
    bool attention = settings.leaves_attention_out();
    for (int i = 0; i < products_.n_inputs(); ++i) {
        attention = attention || (is_active(settings, i) && !is_of_ffn(i));
    }
    for (int i = 0; i < products_.n_inputs(); ++i) {
        if (is_active(settings, i) || !(is_of_ffn(i) || attention)) {
            continue;
        }
        const Input & input = map.inputs[size_t(i)];
        uint64_t      bytes = 0;
        for (const ggml_tensor * weight : input.weights) {
            bytes +=
                ggml_nbytes(weight) / uint64_t(weight->ne[2]) * uint64_t(std::max<int64_t>(1, input.n_experts_used));
        }
        inputs.channels[size_t(i)] = { 0, bytes, bytes };
    }
}

void ChannelEvaluation::begin_decode(const llama_batch & batch, const RowKind * kinds) {
    rows_.resize(std::max(rows_.size(), size_t(batch.n_tokens)));
    for (int32_t i = 0; i < batch.n_tokens; ++i) {
        Row & row    = rows_[size_t(i)];
        row.sequence = batch.seq_id == nullptr ? 0 : batch.seq_id[i][0];
        row.position = batch.pos == nullptr ? i : batch.pos[i];
        row.output   = batch.logits == nullptr ? i + 1 == batch.n_tokens : batch.logits[i] != 0;
        if (settings_.channel_threshold.empty()) {
            row.is = sequences_.begin(row.sequence, row.position, kinds[i]);
        } else {
            row.is = kinds[i] == RowKind::skippable ? ChannelRow::leaves_out : ChannelRow::full;
        }
    }
}

void ChannelEvaluation::begin(const int32_t * ubatch, int32_t n_rows) {
    ubatch_ = ubatch;
    n_rows_ = n_rows;
    few_    = n_rows <= products_.few_rows() &&
              std::any_of(ubatch, ubatch + n_rows, [&](int32_t i) { return leaves_out(rows_[size_t(i)]); });
    edited_.clear();
    outputs_.clear();
    std::copy_if(ubatch, ubatch + n_rows, std::back_inserter(outputs_),
                 [&](int32_t i) { return rows_[size_t(i)].output; });
}

// The products of this evaluation have been computed.
void ChannelEvaluation::end() {
    for (const Edited & edited : edited_) {
        for (int64_t r = 0; r < edited.n_rows; ++r) {
            recorder_.kept(edited.rows[r], input_of(edited.product), products_.n_kept(edited.product, r), n_rows_ == 1);
        }
    }
    edited_.clear();
}

float ChannelEvaluation::threshold(const Row & row, int input) {
    return settings_.channel_threshold.empty() ? sequences_.threshold(row.sequence, input)
                                               : settings_.channel_threshold[size_t(input)];
}

// The `n` rows of a node, as numbers in the batch. What follows the last attention has those with output alone.
const int32_t * ChannelEvaluation::rows_of(const ggml_tensor * node, int64_t n) const {
    if (n == n_rows_) {
        return ubatch_;
    }
    if (n != int64_t(outputs_.size())) {
        throw Unsupported("node '" + std::string(node->name) + "' has " + std::to_string(n) + " rows for " +
                          std::to_string(n_rows_) + " tokens, " + std::to_string(outputs_.size()) +
                          " of them with output");
    }
    return outputs_.data();
}

bool ChannelEvaluation::ask(ggml_tensor * node, const Node & known, const GraphFollower & follower) {
    if (known.product >= 0 && is_of_experts(known.product)) {
        const int32_t * rows = rows_of(node, node->ne[2]);
        const bool any = std::any_of(rows, rows + node->ne[2], [&](int32_t i) { return leaves_out(rows_[size_t(i)]); });
        if (is_moved(known, follower)) {
            return any;
        }
        if (any) {
            edit(node, known.product, rows, node->ne[2]);
        }
    } else if (known.product >= 0 && by_operation(input_of(known.product), follower) && ggml_nrows(node) > 0) {
        edit(node, known.product, rows_of(node, ggml_nrows(node)), ggml_nrows(node));
    }
    if (known.input < 0 || ggml_nrows(node) == 0) {
        return false;
    }
    const bool stays = products_.of_experts(known.input) || by_operation(known.input, follower);
    return !stays || any_wants_reaches();
}

// Whether channels are left out by the products that read this input, and it stays as it is.
bool ChannelEvaluation::by_operation(int input, const GraphFollower & follower) const {
    return few_ && follower.input(input).sparse();
}

bool ChannelEvaluation::any_wants_reaches() const {
    return std::any_of(ubatch_, ubatch_ + n_rows_, [&](int32_t i) { return wants_reaches(rows_[size_t(i)]); });
}

void ChannelEvaluation::edit(ggml_tensor * node, int product, const int32_t * rows, int64_t n_rows) {
    thresholds_.resize(size_t(n_rows));
    std::transform(rows, rows + n_rows, thresholds_.begin(), [&](int32_t i) {
        const Row & row = rows_[size_t(i)];
        return leaves_out(row) ? threshold(row, input_of(product)) : 0.0f;
    });
    products_.edit(node, product, thresholds_.data());
    if (product_of_[size_t(input_of(product))] == product) {
        edited_.push_back({ product, rows, n_rows });
    }
}

void ChannelEvaluation::observe(ggml_tensor * node, const Node & known, const GraphFollower & follower) {
    if (is_moved(known, follower)) {
        compute_here(node, known.product);
    } else if (products_.of_experts(known.input)) {
        const Input & input = follower.input(known.input);
        observe_experts(follower.seen(input.node), follower.seen(input.ids), known.input);
    } else {
        observe_rows(node, known.input, !by_operation(known.input, follower));
    }
}

// A product with experts in a batch of so many rows that their weights were taken to another device.
bool ChannelEvaluation::is_moved(const Node & known, const GraphFollower & follower) const {
    return known.product >= 0 && is_of_experts(known.product) && !follower.input(input_of(known.product)).sparse();
}

// The rows that leave channels out: the others were computed as they should be.
void ChannelEvaluation::compute_here(ggml_tensor * node, int product) {
    const int       input = input_of(product);
    const int32_t * rows  = rows_of(node, node->ne[2]);
    output_.resize(size_t(products_.n_out(product)));
    for (int64_t r = 0; r < node->ne[2]; ++r) {
        const Row & row = rows_[size_t(rows[r])];
        if (!leaves_out(row)) {
            continue;
        }
        int64_t n_kept = 0;
        read_ids(node->src[2], r);
        for (size_t i = 0; i < ids_.size(); ++i) {
            const float * v = read_experts(node->src[1], r, int64_t(i));
            n_kept += products_.multiply(product, ids_[i], threshold(row, input), v, output_.data());
            buffers_.write(node, size_t(r) * node->nb[2] + i * node->nb[1], output_.size() * sizeof(float),
                           output_.data());
        }
        if (product_of_[size_t(input)] == product) {
            recorder_.kept(rows[r], input, n_kept, false);
        }
    }
}

void ChannelEvaluation::observe_rows(ggml_tensor * node, int input, bool leave_out) {
    const int32_t * rows = rows_of(node, ggml_nrows(node));
    for (int64_t r = 0; r < ggml_nrows(node); ++r) {
        const Row & row = rows_[size_t(rows[r])];
        if (row.is == ChannelRow::full) {
            continue;
        }
        float * v = read(node, size_t(r) * node->nb[1], node->ne[0]);
        if (wants_reaches(row)) {
            reaches_.resize(size_t(node->ne[0]));
            products_.reach(input, 0, v, reaches_.data());
            take_reaches(row, input);
        }
        if (leave_out && leaves_out(row)) {
            recorder_.kept(rows[r], input, products_.leave_out(input, threshold(row, input), v), false);
            if (!buffers_.on_host(node)) {
                buffers_.write(node, size_t(r) * node->nb[1], input_.size() * sizeof(float), v);
            }
        }
    }
}

// The experts' input, [n_in, n_used or 1, rows], and which each row uses, [n_used, rows].
void ChannelEvaluation::observe_experts(const ggml_tensor * v, const ggml_tensor * ids, int input) {
    const int32_t * rows = rows_of(ids, ids->ne[1]);
    for (int64_t r = 0; r < ids->ne[1]; ++r) {
        const Row & row = rows_[size_t(rows[r])];
        if (!wants_reaches(row)) {
            continue;
        }
        read_ids(ids, r);
        reaches_.resize(ids_.size() * size_t(v->ne[0]));
        for (size_t i = 0; i < ids_.size(); ++i) {
            products_.reach(input, ids_[i], read_experts(v, r, int64_t(i)), reaches_.data() + i * size_t(v->ne[0]));
        }
        take_reaches(row, input);
    }
}

// The experts that a row uses.
void ChannelEvaluation::read_ids(const ggml_tensor * ids, int64_t row) {
    ids_.resize(size_t(ids->ne[0]));
    buffers_.read(ids, size_t(row) * ids->nb[1], ids_.size() * sizeof(int32_t), ids_.data());
}

// What one of them reads: all the same, or each its own.
const float * ChannelEvaluation::read_experts(const ggml_tensor * v, int64_t row, int64_t used) {
    return read(v, size_t(row) * v->nb[2] + size_t(used % v->ne[1]) * v->nb[1], v->ne[0]);
}

bool ChannelEvaluation::wants_reaches(const Row & row) const {
    return row.is == ChannelRow::observed || (leaves_out(row) && recorder_.counts_reaches());
}

void ChannelEvaluation::take_reaches(const Row & row, int input) {
    const auto reach = [&](int64_t j) { return reaches_[size_t(j)]; };
    if (row.is == ChannelRow::observed) {
        sequences_.observe(row.sequence, row.position, input, int64_t(reaches_.size()), reach);
    }
    if (recorder_.counts_reaches()) {
        recorder_.reached(input, int64_t(reaches_.size()), reach);
    }
}

// `n` floats of a node: in place where the host may, or a copy.
float * ChannelEvaluation::read(const ggml_tensor * node, size_t offset, int64_t n) {
    if (buffers_.on_host(node)) {
        return reinterpret_cast<float *>(static_cast<char *>(node->data) + offset);
    }
    input_.resize(size_t(n));
    buffers_.read(node, offset, input_.size() * sizeof(float), input_.data());
    return input_.data();
}

}  // namespace ffnskip
