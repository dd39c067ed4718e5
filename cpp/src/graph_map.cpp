#include "graph_map.h"

#include "buffers.h"
#include "graph_edit.h"
#include "tensor_names.h"

#include <ggml-backend.h>

#include <algorithm>
#include <utility>

namespace ffnskip {
namespace {

ggml_backend_buffer_usage usage_of(const ggml_tensor * tensor) {
    const ggml_backend_buffer_t buffer = buffer_of(tensor);
    return buffer == nullptr ? GGML_BACKEND_BUFFER_USAGE_ANY : ggml_backend_buffer_get_usage(buffer);
}

// Each device of a tensor-parallel model computes nodes of its own, which know nothing of what is left out of ours.
bool is_spread(const ggml_tensor * weight) {
    const ggml_backend_buffer_t buffer = buffer_of(weight);
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
    return tensor->op == GGML_OP_NONE &&
           (usage_of(tensor) == GGML_BACKEND_BUFFER_USAGE_WEIGHTS || weight_name(tensor->name).layer >= 0);
}

}  // namespace

bool matches(const Node & expected, const ggml_tensor * node, ggml_tensor * const * seen) {
    if (node->op != expected.op) {
        return false;
    }
    for (int k = 0; k < Node::k_src; ++k) {
        const ggml_tensor * src = node->src[k];
        if (expected.src[k] >= 0 ? src != seen[expected.src[k]]
                                 : (src == nullptr) != (expected.src[k] == Node::k_none)) {
            return false;
        }
    }
    return expected.weight == nullptr || node->src[0] == expected.weight;
}

bool reads_embedding(const ggml_tensor * node) {
    return node->op == GGML_OP_GET_ROWS && node->src[1]->type == GGML_TYPE_I32 && node->src[1]->op == GGML_OP_NONE &&
           is_weight(node->src[0]) && weight_name(node->src[0]->name).layer < 0;
}

GraphLearner::Operand GraphLearner::operand(const ggml_tensor * src) const {
    Operand out{ src };
    if (const auto found = index_.find(src); found != index_.end()) {
        out.node = found->second;
    } else if (is_weight(src)) {
        out.weight = true;
    } else if (src->op == GGML_OP_NONE && is_copy(src->name)) {
        const auto original = by_name_.find(std::string(original_name(src->name)));
        out.copied          = original != by_name_.end();
        out.node            = out.copied ? original->second : Node::k_leaf;
    }
    return out;
}

void GraphLearner::mark(int node, Role role, int layer) {
    map_.nodes[size_t(node)].role  = role;
    map_.nodes[size_t(node)].layer = int16_t(layer);
}

void GraphLearner::refuse(int layer, const std::string & why) {
    std::string & why_not = map_.blocks[size_t(layer)].why_not;
    why_not               = why_not.empty() ? why : why_not;
}

void GraphLearner::add(const ggml_tensor * node) {
    if (seen_.empty()) {
        n_embd_   = node->ne[0];
        n_tokens_ = node->ne[1];
    }
    Node & entry = map_.nodes.emplace_back();
    Seen & seen  = seen_.emplace_back();
    entry.op     = node->op;
    std::vector<Operand> operands;
    for (int k = 0; k < GGML_MAX_SRC; ++k) {
        const ggml_tensor * src = node->src[k];
        if (src == nullptr) {
            continue;
        }
        const Operand & op = operands.emplace_back(operand(src));
        if (k < Node::k_src) {
            entry.src[k] = op.copied ? Node::k_leaf : op.node;  // the address of a copy says nothing about the original
        }
        if (op.node >= 0) {
            seen.operands.push_back(op.node);
        }
        if (op.weight) {
            entry.weight = k == 0 ? src : entry.weight;
            seen.weights.push_back(
                { src->name, ggml_type_name(src->type), uint64_t(ggml_nelements(src)), ggml_nbytes(src) });
            seen.bytes += bytes_read(node, src);
        }
    }
    // An operation in place, or one that writes a cache, is in the memory of another tensor.
    seen.removable  = !is_view(node->op) && node->view_src == nullptr && (node->flags & GGML_TENSOR_FLAG_OUTPUT) == 0;
    seen.activation = node->type == GGML_TYPE_F32 && node->ne[0] == n_embd_ && ggml_is_contiguous(node);
    seen.vectors    = node->type == GGML_TYPE_F32 && ggml_is_contiguous(node) && node->ne[2] == 1 && node->ne[3] == 1;
    if (const ggml_backend_buffer_t buffer = buffer_of(node); buffer != nullptr && !is_view(node->op)) {
        seen.device = computing_device(buffer);
    }
    index_[node]         = int32_t(seen_.size()) - 1;
    by_name_[node->name] = int32_t(seen_.size()) - 1;
    derive(node, operands);
    take_product(node);
    for (const Operand & op : operands) {
        if (op.copied) {
            copies_read_.insert(op.tensor);
        }
    }
}

// The residual add of `layer`: f + h, where h is a node that no FFN weight of the layer has touched. That h is no
// weight matters in batches of one row: biases of experts or of norms then have the shape of h.
bool GraphLearner::is_residual_add(const ggml_tensor * node, const std::vector<Operand> & operands, int layer,
                                   int & h) const {
    if (node->op != GGML_OP_ADD || operands.size() != 2 || !ggml_are_same_shape(node->src[0], node->src[1]) ||
        !seen_.back().activation) {
        return false;
    }
    const auto touched = [&](int k) { return seen_[size_t(operands[size_t(k)].node)].layer == layer; };
    const auto usable  = [](const Operand & op) {
        return op.tensor->type == GGML_TYPE_F32 && ggml_is_contiguous(op.tensor);
    };
    if (operands[0].node < 0 || operands[1].node < 0 || touched(0) == touched(1)) {
        return false;
    }
    h = touched(0) ? 1 : 0;
    return usable(operands[0]) && usable(operands[1]);
}

// Finds out whether `node`, the last one added, belongs to an FFN block.
void GraphLearner::derive(const ggml_tensor * node, const std::vector<Operand> & operands) {
    const std::string name  = "node '" + std::string(node->name) + "' ";
    int               layer = -1;
    for (const Operand & op : operands) {
        const int from = layer_of(op);
        if (from >= 0 && layer >= 0 && from != layer) {
            refuse(layer,
                   name + "reads the FFN blocks of layers " + std::to_string(layer) + " and " + std::to_string(from));
        }
        layer = from >= 0 ? from : layer;
    }
    if (layer < 0) {
        return;
    }
    Block & block = map_.blocks[size_t(layer)];
    if (block.residual_add >= 0) {
        refuse(layer, name + "reads the FFN block after its residual add");
        return;
    }
    block.layer = layer;
    if (int h = -1; is_residual_add(node, operands, layer, h)) {
        end_block(block, node, operands, h);
    } else {
        take_in(block, node, operands);
    }
}

// The layer whose FFN block an operand comes from; -1: none.
int GraphLearner::layer_of(const Operand & op) const {
    if (op.weight) {
        const auto [layer, part] = weight_name(op.tensor->name);
        return part == Part::ffn && layer < int(map_.blocks.size()) ? layer : -1;
    }
    return op.node >= 0 ? seen_[size_t(op.node)].layer : -1;
}

// `node`, the last one added, is the residual add of the block; its operand `h` is h.
void GraphLearner::end_block(Block & block, const ggml_tensor * node, const std::vector<Operand> & operands, int h) {
    const int index = int(seen_.size()) - 1;
    mark(index, Role::residual_add, block.layer);
    block.residual_add = index;
    block.h_src        = h;
    block.h            = operands[size_t(h)].node;
    block.branch       = operands[size_t(1 - h)].node;
    // Written over h, or to be: ggml reuses the memory of operand 0 where it can.
    block.residual = h == 0 || (node->data != nullptr && node->data == node->src[h]->data) ? "in place" : "sequential";
    // The copy was made early, and the original may be gone when f is there; or h is computed later than f.
    if (copies_read_.count(node->src[h]) != 0 || block.h > block.branch) {
        block.output = index;
    }
    if (ggml_nrows(node) != n_tokens_) {
        refuse(block.layer, "the residual add has " + std::to_string(ggml_nrows(node)) + " rows for " +
                                std::to_string(n_tokens_) + " tokens");
    }
}

// `node`, the last one added, is computed for the block: it must be one that can be left out.
void GraphLearner::take_in(Block & block, const ggml_tensor * node, const std::vector<Operand> & operands) {
    const std::string name = "node '" + std::string(node->name) + "' of the FFN block ";
    mark(int(seen_.size()) - 1, Role::body, block.layer);
    seen_.back().layer    = block.layer;
    block.fetches_experts = block.fetches_experts || (node->op == GGML_OP_MUL_MAT_ID && is_copy(node->src[0]->name));
    for (const Operand & op : operands) {
        if (op.weight && is_spread(op.tensor)) {
            refuse(block.layer, "its weights are spread over devices (split mode 'tensor')");
        }
        if (op.weight && weight_name(op.tensor->name).part == Part::other) {
            refuse(block.layer, name + "reads '" + op.tensor->name + "'");
        }
    }
    if ((node->flags & GGML_TENSOR_FLAG_OUTPUT) != 0) {
        refuse(block.layer, name + "is an output of the graph");
    }
    const bool writes = node->op == GGML_OP_SET_ROWS || node->op == GGML_OP_CPY;
    if (writes && node->view_src != nullptr && usage_of(node) != GGML_BACKEND_BUFFER_USAGE_COMPUTE) {
        refuse(block.layer, name + "writes a cache");
    }
}

// Parallel attention and FFN: the sum of f and one part of the residual is read by nothing but another such add.
void GraphLearner::find_output(Block & block) {
    std::vector<size_t> readers;
    for (size_t i = size_t(block.residual_add) + 1; i < seen_.size(); ++i) {
        const auto & operands = seen_[i].operands;
        readers.insert(readers.end(), size_t(std::count(operands.begin(), operands.end(), block.residual_add)), i);
    }
    if (readers.size() != 1 || map_.nodes[readers[0]].op != GGML_OP_ADD || !seen_[readers[0]].activation) {
        return;
    }
    const auto & operands = seen_[readers[0]].operands;
    if (operands.size() == 2 && seen_[size_t(operands[0])].activation && seen_[size_t(operands[1])].activation) {
        mark(int(readers[0]), Role::layer_output, block.layer);
        block.residual = "parallel";
        block.output   = int(readers[0]);
    }
}

// What is computed for the block alone, such as the norm of its input, is left out with it.
void GraphLearner::take_in_feeders(const Block & block) {
    constexpr uint8_t    k_block = 1, k_rest = 2;
    std::vector<uint8_t> readers(seen_.size(), 0);
    for (size_t i = seen_.size(); i-- > 0;) {
        const Node & node   = map_.nodes[i];
        bool         inside = node.layer == block.layer && node.role == Role::body;
        if (node.role == Role::none && readers[i] == k_block) {
            inside = seen_[i].removable || is_view(node.op);  // a view is left as it is, and hands on what reads it
            if (seen_[i].removable) {
                mark(int(i), Role::body, block.layer);
            }
        }
        for (const int32_t operand : seen_[i].operands) {
            readers[size_t(operand)] |= inside ? k_block : k_rest;
        }
    }
}

void GraphLearner::describe(Block & block) {
    bool gated = false, experts = false, shared = false;
    for (size_t i = 0; i < seen_.size(); ++i) {
        const Node & node = map_.nodes[i];
        Seen &       seen = seen_[i];
        if (node.layer != block.layer) {
            continue;
        }
        // Each device that computes a node of a block has to show that it honours the edits.
        if (const std::string & fault = seen.device ? device_fault_(*seen.device) : std::string(); !fault.empty()) {
            refuse(block.layer, fault);
        }
        if (node.role != Role::body) {
            continue;
        }
        gated   = gated || node.op == GGML_OP_GLU;
        experts = experts || node.op == GGML_OP_MUL_MAT_ID;
        block.bytes_per_token += seen.bytes;
        for (FfnWeight & weight : seen.weights) {
            shared = shared || weight.name.find("shexp") != std::string::npos ||
                     weight.name.find("chexps") != std::string::npos;
            block.weights.push_back(std::move(weight));
        }
    }
    block.kind = experts ? (shared ? "experts + shared" : "experts") : gated ? "gated" : "plain";
}

GraphMap GraphLearner::finish() {
    for (Block & block : map_.blocks) {
        if (block.layer < 0) {
            continue;
        }
        if (block.residual_add >= 0) {
            find_output(block);
            take_in_feeders(block);
        } else {
            refuse(block.layer, "no residual add was found");
        }
        describe(block);
        if (block.branch >= 0) {
            map_.nodes[size_t(block.branch)].role = Role::branch;
        }
        if (&block == &map_.blocks.back()) {
            block.why_not = "it is of the last layer, which always runs";
        }
        block.skippable = block.why_not.empty();
    }
    find_inputs();
    return std::move(map_);
}

}  // namespace ffnskip
