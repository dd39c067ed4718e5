// Finds the products of a graph whose input channels can be left out, and what they read.
#include "channels/channel_layout.h"
#include "graph_edit.h"
#include "graph_map.h"
#include "tensor_names.h"

#include <ggml-backend.h>

#include <algorithm>
#include <string>
#include <utility>

namespace ffnskip {
namespace {

// Or in no memory yet.
bool on_cpu(const std::optional<ggml_backend_dev_t> & device) {
    return !device || *device == nullptr || ggml_backend_dev_type(*device) == GGML_BACKEND_DEVICE_TYPE_CPU;
}

// Why a product can't become an operation that leaves channels out; empty: it can.
std::string fault(const ggml_tensor * node, const std::optional<ggml_backend_dev_t> & device) {
    const ggml_tensor * weight = node->src[0];
    const std::string   name   = "'" + std::string(weight->name) + "' ";
    if (!on_cpu(device)) {
        return "it is computed by " + std::string(ggml_backend_dev_name(*device)) + ", not by the CPU";
    }
    if (channel_format(weight->type) == nullptr) {
        return name + "is of type " + ggml_type_name(weight->type) + ", which can't be stored by channel";
    }
    if (!ggml_is_contiguous(weight) || ggml_n_dims(weight) > (node->op == GGML_OP_MUL_MAT_ID ? 3 : 2)) {
        return name + "is no plain matrix";
    }
    if (weight->ne[0] % channel_format(weight->type)->block != 0) {
        return name + "has " + std::to_string(weight->ne[0]) + " inputs, no multiple of " +
               std::to_string(channel_format(weight->type)->block);
    }
    if (!has_spare_params(node)) {
        return "node '" + std::string(node->name) + "' has parameters that are not known";
    }
    return "";
}

// Bytes of a weight by channel; 0 where it can't be stored so.
uint64_t bytes_by_channel(const ggml_tensor * weight) {
    const ChannelFormat * format = channel_format(weight->type);
    return format == nullptr || ggml_n_dims(weight) > 3 || weight->ne[0] % format->block != 0
               ? 0
               : uint64_t(ChannelLayout(weight->type, weight->ne[0], weight->ne[1]).bytes(weight->ne[2]));
}

// A product of rows of float32 numbers, and rows of them itself.
bool multiplies_rows(const ggml_tensor * node) {
    const ggml_tensor * input = node->src[1];
    const bool          rows =
        node->type == GGML_TYPE_F32 && ggml_is_contiguous(node) && node->ne[3] == 1 && input->type == GGML_TYPE_F32;
    return node->op == GGML_OP_MUL_MAT_ID ? rows && input->nb[0] == sizeof(float) && node->src[2]->type == GGML_TYPE_I32
                                          : rows && node->ne[2] == 1;
}

}  // namespace

LayerInput described(const Input & input, int number) {
    LayerInput all;
    all.layer   = number / k_input_kinds;
    all.kind    = k_input_kind_names[number % k_input_kinds];
    all.why_not = input.why_not;
    for (const ggml_tensor * weight : input.weights) {
        all.n_channels = uint64_t(weight->ne[0]);
        all.bytes += bytes_by_channel(weight);
        all.bytes_per_token += input.n_experts_used == 0
                                   ? ggml_nbytes(weight)
                                   : ggml_nbytes(weight) / uint64_t(weight->ne[2]) * uint64_t(input.n_experts_used);
        all.weights.push_back({ weight->name, ggml_type_name(weight->type), uint64_t(ggml_nelements(weight)),
                                uint64_t(ggml_nbytes(weight)) });
    }
    return all;
}

// `node` was added last.
void GraphLearner::take_product(const ggml_tensor * node) {
    const bool experts = node->op == GGML_OP_MUL_MAT_ID;
    const int  index   = int(seen_.size()) - 1;
    const int  number = experts || node->op == GGML_OP_MUL_MAT ? product_number(original_name(node->src[0]->name)) : -1;
    if (number < 0 || number >= map_.n_layer() * k_products_per_layer || experts != is_of_experts(number)) {
        return;
    }
    const Seen & seen  = seen_.back();
    const int    input = seen.operands.size() == (experts ? 2 : 1) ? seen.operands[0] : -1;
    Product      product{ index, input, number, node->src[0], 0, -1, "", "" };
    if (experts && input >= 0) {
        product.ids            = seen.operands[1];
        product.n_experts_used = node->src[2]->ne[0];
    }
    if (!multiplies_rows(node) || input < 0 || (!experts && !seen_[size_t(input)].vectors)) {
        product.why_not = "node '" + std::string(node->name) + "' is no product with rows of float32 numbers";
    } else {
        (experts ? product.why_not : product.why_not_sparse) = fault(node, seen.device);
    }
    products_.push_back(std::move(product));
}

void GraphLearner::find_inputs() {
    map_.inputs.resize(size_t(map_.n_layer() * k_input_kinds));
    for (const Product & product : products_) {
        join(map_.inputs[size_t(input_of(product.number))], product);
    }
    for (size_t number = 0; number < map_.inputs.size(); ++number) {
        Input & input = map_.inputs[number];
        if (!input.usable()) {
            continue;
        }
        input.normalised = is_normalised(map_.blocks[size_t(block_of(int(number) / k_input_kinds, BlockKind::ffn))]);
        if (input.n_experts_used > 0) {
            map_.nodes[size_t(std::max(input.node, input.ids))].input = int16_t(number);
            continue;
        }
        require_only_readers(input, int(number));
        if (input.sparse() && !on_cpu(seen_[size_t(input.node)].device)) {
            input.why_not_sparse = "its input is not in the CPU's memory";
        }
        if (input.usable()) {
            map_.nodes[size_t(input.node)].input = int16_t(number);
        }
    }
    for (const Product & product : products_) {
        if (map_.inputs[size_t(input_of(product.number))].usable()) {
            map_.nodes[size_t(product.node)].product = int16_t(product.number);
        }
    }
}

void GraphLearner::join(Input & input, const Product & product) {
    input.weights.push_back(product.weight);
    if (input.why_not.empty()) {
        input.why_not = product.why_not;
    }
    if (input.why_not_sparse.empty()) {
        input.why_not_sparse = product.why_not_sparse;
    }
    const bool differs = product.input != input.node || product.ids != input.ids;
    if (input.weights.size() > 1 && differs && input.why_not.empty()) {
        input.why_not = "'" + std::string(product.weight->name) + "' reads another input than '" +
                        input.weights.front()->name + "'";
    }
    input.node           = product.input;
    input.ids            = product.ids;
    input.n_experts_used = product.n_experts_used;
}

// The node whose memory `node` is.
int GraphLearner::memory_of(int node) const {
    while (is_view(map_.nodes[size_t(node)].op) && map_.nodes[size_t(node)].src[0] >= 0) {
        node = map_.nodes[size_t(node)].src[0];
    }
    return node;
}

// Channels are left out of the input itself where several rows are computed: so nobody else may read it.
void GraphLearner::require_only_readers(Input & input, int number) {
    const int memory = memory_of(input.node);
    for (size_t i = size_t(memory) + 1; i < seen_.size(); ++i) {
        const auto reads = [&](int32_t operand) { return memory_of(operand) == memory; };
        if (std::none_of(seen_[i].operands.begin(), seen_[i].operands.end(), reads) || is_view(map_.nodes[i].op)) {
            continue;
        }
        const bool ours = std::any_of(products_.begin(), products_.end(), [&](const Product & product) {
            return product.node == int(i) && input_of(product.number) == number;
        });
        if (!ours) {
            const auto named = std::find_if(by_name_.begin(), by_name_.end(),
                                            [&](const auto & entry) { return entry.second == int32_t(i); });
            // Of a LoRA adapter, say: its nodes have names that tell nobody anything.
            const ggml_tensor * weight = map_.nodes[i].weight;
            const std::string reader = weight != nullptr ? weight->name : named == by_name_.end() ? "?" : named->first;
            input.why_not =
                "its input is read by " + std::string(weight != nullptr ? "'" : "node '") + reader + "' too";
            return;
        }
    }
}

// Models that do so with the FFN's result do so with attention's.
bool GraphLearner::is_normalised(const FoundBlock & block) const {
    const auto is_product = [&](int node) {
        return std::any_of(products_.begin(), products_.end(), [&](const Product & p) { return p.node == node; });
    };
    for (int i = block.branch; i >= 0 && !is_product(i); --i) {
        const ggml_op op = map_.nodes[size_t(i)].op;
        if (op == GGML_OP_RMS_NORM || op == GGML_OP_NORM) {
            return true;
        }
    }
    return false;
}

}  // namespace ffnskip
