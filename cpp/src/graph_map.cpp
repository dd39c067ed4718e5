#include "graph_map.h"

#include "graph_edit.h"

#include <ggml-backend.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string_view>

namespace ffnskip {
namespace {

// A tensor the scheduler copied to another device is named "<device>#<name of the original>#<number>".
std::string_view original_name(const char * name) {
    const std::string_view text(name);
    const size_t           first = text.find('#');
    const size_t           last  = text.rfind('#');
    return first == last ? text : text.substr(first + 1, last - first - 1);
}

bool is_copy(const char * name) {
    return original_name(name).size() != std::strlen(name);
}

bool starts_with(std::string_view text, std::string_view prefix) {
    return text.substr(0, prefix.size()) == prefix;
}

// "blk.<layer>.<rest>"; -1 for a tensor of no layer.
int layer_of(std::string_view name, std::string_view & rest) {
    if (!starts_with(name, "blk.")) {
        return -1;
    }
    const size_t dot = name.find('.', 4);
    if (dot == std::string_view::npos || dot == 4 || dot > 10) {
        return -1;
    }
    rest = name.substr(dot + 1);
    return std::atoi(std::string(name.substr(4, dot - 4)).c_str());
}

bool is_ffn_weight(std::string_view rest) {
    return starts_with(rest, "ffn_") && !starts_with(rest, "ffn_norm");
}

// Weights an FFN block may read besides its own: norms around it, and biases that steer the choice of experts.
bool may_feed_ffn(std::string_view rest) {
    return starts_with(rest, "ffn") || starts_with(rest, "post_ffw") || starts_with(rest, "pre_ffw") ||
           starts_with(rest, "exp_probs_b") || starts_with(rest, "post_attention_norm") ||
           starts_with(rest, "layer_output_norm");
}

const ggml_tensor * memory_of(const ggml_tensor * tensor) {
    return tensor->view_src != nullptr ? tensor->view_src : tensor;
}

ggml_backend_buffer_usage usage_of(const ggml_tensor * tensor) {
    const ggml_tensor * root = memory_of(tensor);
    return root->buffer == nullptr ? GGML_BACKEND_BUFFER_USAGE_ANY : ggml_backend_buffer_get_usage(root->buffer);
}

// Each device of a tensor-parallel model computes nodes of its own, which know nothing of what is left out of ours.
bool is_spread(const ggml_tensor * weight) {
    const ggml_backend_buffer_t buffer = memory_of(weight)->buffer;
    const ggml_backend_dev_t    device =
        buffer == nullptr ? nullptr : ggml_backend_buft_get_device(ggml_backend_buffer_get_type(buffer));
    return device != nullptr && ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_META;
}

// What `node` reads of a weight for one token: all of it, or the experts chosen.
uint64_t bytes_read(const ggml_tensor * node, const ggml_tensor * weight) {
    const uint64_t all = ggml_nbytes(weight);
    if (node->op == GGML_OP_MUL_MAT_ID && weight == node->src[0]) {
        return all / uint64_t(weight->ne[2]) * uint64_t(node->src[2]->ne[0]);
    }
    return all;
}

bool is_weight(const ggml_tensor * tensor) {
    std::string_view rest;
    return tensor->op == GGML_OP_NONE && (usage_of(tensor) == GGML_BACKEND_BUFFER_USAGE_WEIGHTS ||
                                          layer_of(original_name(tensor->name), rest) >= 0);
}

}  // namespace

bool matches(const Node & expected, const ggml_tensor * node, ggml_tensor * const * seen) {
    if (node->op != expected.op) {
        return false;
    }
    for (int k = 0; k < Node::k_src; ++k) {
        const ggml_tensor * src = node->src[k];
        if (expected.src[k] >= 0 ? src != seen[expected.src[k]] : (src == nullptr) != (expected.src[k] == Node::k_none)) {
            return false;
        }
    }
    return expected.weight == nullptr || node->src[0] == expected.weight;
}

const ggml_tensor * embedding_weight(const ggml_tensor * node) {
    if (node->op != GGML_OP_GET_ROWS || node->src[0]->op != GGML_OP_NONE || node->src[1]->type != GGML_TYPE_I32 ||
        node->src[1]->op != GGML_OP_NONE) {
        return nullptr;
    }
    std::string_view rest;
    return is_weight(node->src[0]) && layer_of(original_name(node->src[0]->name), rest) < 0 ? node->src[0] : nullptr;
}

GraphLearner::Operand GraphLearner::operand(const ggml_tensor * src) const {
    Operand out;
    if (src == nullptr) {
        return out;
    }
    out.node = Node::k_leaf;
    out.name = src->name;
    if (const auto found = index_.find(src); found != index_.end()) {
        out.node = found->second;
        return out;
    }
    if (src->op == GGML_OP_NONE) {
        out.weight = is_weight(src);
        if (!out.weight && is_copy(src->name)) {
            const auto found = by_name_.find(std::string(original_name(src->name)));
            if (found != by_name_.end()) {
                out.node = found->second;
            }
        }
    }
    return out;
}

void GraphLearner::refuse(int layer, const std::string & why) {
    std::string & refusal = map_.blocks[size_t(layer)].refusal;
    if (refusal.empty()) {
        refusal = why;
    }
}

void GraphLearner::add(const ggml_tensor * node) {
    if (map_.nodes.empty()) {
        map_.n_embd   = node->ne[0];
        map_.n_tokens = node->src[1] != nullptr ? node->src[1]->ne[0] : node->ne[1];
        map_.blocks.resize(size_t(n_layer_));
    }
    const int            index = int(map_.nodes.size());
    std::vector<Operand> operands;
    Node                 entry;
    Seen                 seen;

    entry.op = node->op;
    for (int k = 0; k < GGML_MAX_SRC; ++k) {
        const Operand op = operand(node->src[k]);
        if (k < Node::k_src) {
            // A copy is matched as a leaf: its address says nothing about the original.
            const bool copied = op.node >= 0 && index_.find(node->src[k]) == index_.end();
            entry.src[k] = copied ? Node::k_leaf : op.node;
        }
        if (k == 0 && op.weight) {
            entry.weight = node->src[k];
        }
        if (op.weight) {
            seen.bytes += bytes_read(node, node->src[k]);
            seen.weights.push_back(node->src[k]);
        }
        if (op.node != Node::k_none) {
            operands.push_back(op);
        }
        if (op.node >= 0) {
            seen.operands.push_back(op.node);
        }
    }
    // An operation in place, or one that writes a cache, is in the memory of another tensor.
    seen.removable  = !is_view(node->op) && node->view_src == nullptr && (node->flags & GGML_TENSOR_FLAG_OUTPUT) == 0;
    seen.activation = node->type == GGML_TYPE_F32 && node->ne[0] == map_.n_embd && ggml_is_contiguous(node);
    seen.name       = node->name;
    if (const ggml_backend_buffer_t buffer = memory_of(node)->buffer; buffer != nullptr && !is_view(node->op)) {
        seen.placed = true;
        seen.device = computing_device(buffer);
    }

    index_[node]         = index;
    by_name_[node->name] = index;
    map_.nodes.push_back(entry);
    seen_.push_back(std::move(seen));
    derive(node, index, operands);
    for (const ggml_tensor * src : node->src) {
        if (src != nullptr && src->op == GGML_OP_NONE && is_copy(src->name)) {
            copies_read_.insert(src);
        }
    }
}

// The residual add of `layer`: f + h, where h is a node that no FFN weight of the layer has touched. That h is no
// weight matters in batches of one row: biases of experts or of norms then have the shape of h.
bool GraphLearner::is_residual_add(const ggml_tensor * node, const std::vector<Operand> & operands, int layer, int & h) const {
    if (node->op != GGML_OP_ADD || operands.size() != 2 || !ggml_are_same_shape(node->src[0], node->src[1]) ||
        !seen_.back().activation) {
        return false;
    }
    for (int k = 0; k < 2; ++k) {
        const Operand & f = operands[size_t(1 - k)];
        const Operand & other = operands[size_t(k)];
        if (f.node >= 0 && seen_[size_t(f.node)].layer == layer && other.node >= 0 && seen_[size_t(other.node)].layer != layer) {
            h = k;
            return node->src[k]->type == GGML_TYPE_F32 && node->src[1 - k]->type == GGML_TYPE_F32 &&
                   ggml_is_contiguous(node->src[0]) && ggml_is_contiguous(node->src[1]);
        }
    }
    return false;
}

void GraphLearner::derive(const ggml_tensor * node, int index, const std::vector<Operand> & operands) {
    int         layer = -1;
    std::string foreign;  // a weight that has no business in an FFN block
    for (const Operand & op : operands) {
        int from = -1;
        if (op.node >= 0) {
            from = seen_[size_t(op.node)].layer;
        } else if (op.weight) {
            std::string_view rest;
            const int        il = layer_of(original_name(op.name), rest);
            if (il >= 0 && il < n_layer_ && is_ffn_weight(rest)) {
                from = il;
            } else if (il < 0 || !may_feed_ffn(rest)) {
                foreign = op.name;
            }
        }
        if (from >= 0 && layer >= 0 && from != layer) {
            refuse(layer, "node '" + std::string(node->name) + "' reads the FFN blocks of layers " + std::to_string(layer) +
                              " and " + std::to_string(from));
        }
        layer = from >= 0 ? from : layer;
    }
    if (layer < 0) {
        return;
    }

    Block & block = map_.blocks[size_t(layer)];
    if (block.residual_add >= 0) {
        refuse(layer, "node '" + std::string(node->name) + "' reads the FFN block after its residual add");
        return;
    }
    block.layer = layer;

    int h = -1;
    if (is_residual_add(node, operands, layer, h)) {
        block.residual_add = index;
        block.h_src        = h;
        block.h            = copies_read_.count(node->src[h]) == 0 ? operands[size_t(h)].node : Node::k_leaf;
        block.n_rows       = ggml_nrows(node);
        block.branch       = operands[size_t(1 - h)].node;
        // Written over h, or to be: ggml reuses the memory of operand 0 where it can.
        const bool over_h = h == 0 || node->data == node->src[h]->data;
        block.form        = over_h ? Form::in_place : Form::sequential;
        map_.nodes[size_t(index)].role  = Role::residual_add;
        map_.nodes[size_t(index)].layer = int16_t(layer);
        return;
    }

    block.fetches_experts = block.fetches_experts || (node->op == GGML_OP_MUL_MAT_ID && is_copy(node->src[0]->name));
    seen_[size_t(index)].layer      = layer;
    map_.nodes[size_t(index)].role  = Role::body;
    map_.nodes[size_t(index)].layer = int16_t(layer);
    ++block.n_body;

    if (!foreign.empty()) {
        refuse(layer, "node '" + std::string(node->name) + "' of the FFN block reads '" + foreign + "'");
    }
    if ((node->flags & GGML_TENSOR_FLAG_OUTPUT) != 0) {
        refuse(layer, "node '" + std::string(node->name) + "' of the FFN block is an output of the graph");
    }
    const bool writes = node->op == GGML_OP_SET_ROWS || node->op == GGML_OP_CPY;
    if (writes && node->view_src != nullptr && usage_of(node) != GGML_BACKEND_BUFFER_USAGE_COMPUTE) {
        refuse(layer, "node '" + std::string(node->name) + "' of the FFN block writes a cache");
    }
}

// Parallel attention and FFN: the sum of f and one part of the residual is read by nothing but another such add.
void GraphLearner::find_parallel_output(Block & block) {
    int reader = -1, n_readers = 0;
    for (size_t i = size_t(block.residual_add) + 1; i < seen_.size(); ++i) {
        for (const int32_t operand : seen_[i].operands) {
            if (operand == block.residual_add) {
                reader = int(i);
                ++n_readers;
            }
        }
    }
    if (n_readers != 1 || map_.nodes[size_t(reader)].op != GGML_OP_ADD || !seen_[size_t(reader)].activation) {
        return;
    }
    const auto & operands = seen_[size_t(reader)].operands;
    if (operands.size() == 2 && seen_[size_t(operands[0])].activation && seen_[size_t(operands[1])].activation) {
        block.form         = Form::parallel;
        block.layer_output = reader;
        map_.nodes[size_t(reader)].role  = Role::layer_output;
        map_.nodes[size_t(reader)].layer = int16_t(block.layer);
    }
}

// What is computed for the block alone, such as the norm of its input, is left out with it.
void GraphLearner::take_in_feeders(int layer) {
    constexpr uint8_t    k_block = 1, k_rest = 2;
    std::vector<uint8_t> readers(seen_.size(), 0);
    for (size_t i = seen_.size(); i-- > 0;) {
        Node & node   = map_.nodes[i];
        bool   inside = node.layer == layer && node.role == Role::body;
        if (node.role == Role::none && readers[i] == k_block) {
            inside = seen_[i].removable || is_view(node.op);  // a view is left as it is, and hands on what reads it
            if (seen_[i].removable) {
                node.role  = Role::body;
                node.layer = int16_t(layer);
                ++map_.blocks[size_t(layer)].n_body;
            }
        }
        for (const int32_t operand : seen_[i].operands) {
            readers[size_t(operand)] |= inside ? k_block : k_rest;
        }
    }
}

void GraphLearner::describe(Block & block) const {
    for (size_t i = 0; i < seen_.size(); ++i) {
        const Node & node = map_.nodes[i];
        if (node.layer != block.layer || node.role != Role::body) {
            continue;
        }
        block.gated   = block.gated || node.op == GGML_OP_GLU;
        block.experts = block.experts || node.op == GGML_OP_MUL_MAT_ID;
        block.bytes += seen_[i].bytes;
        block.weights.insert(block.weights.end(), seen_[i].weights.begin(), seen_[i].weights.end());
    }
}

// Each device that computes a node of a block has to show that it honours the edits.
void GraphLearner::try_devices() {
    for (size_t i = 0; i < seen_.size(); ++i) {
        const Node & node = map_.nodes[i];
        if (node.role == Role::none || !seen_[i].placed) {
            continue;
        }
        const std::string & fault = device_fault_(seen_[i].device);
        if (!fault.empty()) {
            refuse(node.layer, fault);
        }
    }
}

GraphMap GraphLearner::finish() {
    for (Block & block : map_.blocks) {
        if (block.layer < 0) {
            continue;
        }
        if (block.residual_add < 0) {
            refuse(block.layer, "no residual add was found");
            continue;
        }
        find_parallel_output(block);
        take_in_feeders(block.layer);
        describe(block);
        if (std::any_of(block.weights.begin(), block.weights.end(), is_spread)) {
            refuse(block.layer, "its weights are spread over devices (split mode 'tensor')");
        }
        if (block.form != Form::sequential) {
            map_.nodes[size_t(block.branch)].role = Role::branch;
        }
        if (block.form == Form::in_place && (block.h < 0 || block.h > block.branch)) {
            refuse(block.layer, "the residual add is done in place over a copy of the residual made early");
        }
        if (block.n_rows != map_.n_tokens && block.layer != n_layer_ - 1) {
            refuse(block.layer, "the residual add has " + std::to_string(block.n_rows) + " rows for " +
                                    std::to_string(map_.n_tokens) + " tokens");
        }
    }
    try_devices();
    return std::move(map_);
}

}  // namespace ffnskip
