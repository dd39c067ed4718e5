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

// The context's memory that `node` is a part of; null: none. Other memory that nodes are views of is that of weights or of
// other nodes.
const ggml_tensor * cache_of(const ggml_tensor * node) {
    const ggml_tensor * root  = node->view_src;
    const bool          other = root == nullptr || root->op != GGML_OP_NONE ||
                                usage_of(root) == GGML_BACKEND_BUFFER_USAGE_COMPUTE || is_weight(root);
    return other ? nullptr : root;
}

bool is_write(ggml_op op) {
    return op == GGML_OP_SET_ROWS || op == GGML_OP_CPY;
}

// Of all reasons the first.
void refuse(Block & block, const std::string & why) {
    block.why_not = block.why_not.empty() ? why : block.why_not;
}

std::string name_of(BlockKind kind) {
    return kind == BlockKind::ffn ? "FFN" : "attention";
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

void GraphLearner::mark(int node, Role role, const Block & block) {
    place(node, block).role  = role;
    place(node, block).block = number_of(block);
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
    seen.cache      = cache_of(node);
    seen.writes     = seen.cache != nullptr && is_write(node->op);
    seen.activation = node->type == GGML_TYPE_F32 && node->ne[0] == n_embd_ && ggml_is_contiguous(node);
    seen.vectors    = node->type == GGML_TYPE_F32 && ggml_is_contiguous(node) && node->ne[2] == 1 && node->ne[3] == 1;
    if (const ggml_backend_buffer_t buffer = buffer_of(node); buffer != nullptr && !is_view(node->op)) {
        seen.device = computing_device(buffer);
    }
    index_[node]         = int32_t(seen_.size()) - 1;
    by_name_[node->name] = int32_t(seen_.size()) - 1;
    derive(node, operands, BlockKind::attention);
    derive(node, operands, BlockKind::ffn);
    take_product(node);
    for (const Operand & op : operands) {
        if (op.copied) {
            copies_read_.insert(op.tensor);
        }
    }
}

// The residual add of a block: f + h, where h is a node that no weight of the block has touched. That h is no
// weight matters in batches of one row: biases of experts or of norms then have the shape of h.
bool GraphLearner::is_residual_add(const ggml_tensor * node, const std::vector<Operand> & operands, int block,
                                   int & h) const {
    if (node->op != GGML_OP_ADD || operands.size() != 2 || !ggml_are_same_shape(node->src[0], node->src[1]) ||
        !seen_.back().activation) {
        return false;
    }
    const auto touched = [&](int k) {
        return seen_[size_t(operands[size_t(k)].node)].places[size_t(kind_of(block))].derived == block;
    };
    const auto usable = [](const Operand & op) {
        return op.tensor->type == GGML_TYPE_F32 && ggml_is_contiguous(op.tensor);
    };
    if (operands[0].node < 0 || operands[1].node < 0 || touched(0) == touched(1)) {
        return false;
    }
    h = touched(0) ? 1 : 0;
    return usable(operands[0]) && usable(operands[1]);
}

// Finds out whether `node`, the last one added, belongs to a block of this kind.
void GraphLearner::derive(const ggml_tensor * node, const std::vector<Operand> & operands, BlockKind kind) {
    const std::string name   = "node '" + std::string(node->name) + "' ";
    int               number = -1;
    for (const Operand & op : operands) {
        const int from = origin(op, kind);
        if (from >= 0 && number >= 0 && from != number) {
            refuse(map_.blocks[size_t(number)], name + "reads the " + name_of(kind) + " blocks of layers " +
                                                    std::to_string(layer_of(number)) + " and " +
                                                    std::to_string(layer_of(from)));
        }
        number = from >= 0 ? from : number;
    }
    if (number < 0) {
        return;
    }
    FoundBlock & block = map_.blocks[size_t(number)];
    if (block.residual_add >= 0) {
        refuse(block, name + "reads the " + name_of(kind) + " block after its residual add");
        return;
    }
    block.layer = layer_of(number);
    block.kind  = kind;
    if (int h = -1; is_residual_add(node, operands, number, h)) {
        end_block(block, node, operands, h);
    } else {
        take_in(block, node, operands);
    }
}

// The block of this kind that an operand comes from; -1: none.
int GraphLearner::origin(const Operand & op, BlockKind kind) const {
    if (op.weight) {
        const auto [layer, part] = weight_name(op.tensor->name);
        const bool ours          = part == (kind == BlockKind::ffn ? Part::ffn : Part::attention);
        return ours && layer < map_.n_layer() ? block_of(layer, kind) : -1;
    }
    return op.node >= 0 ? seen_[size_t(op.node)].places[size_t(kind)].derived : -1;
}

// `node`, the last one added, is the residual add of the block; its operand `h` is h.
void GraphLearner::end_block(FoundBlock & block, const ggml_tensor * node, const std::vector<Operand> & operands,
                             int h) {
    const int index = int(seen_.size()) - 1;
    mark(index, Role::residual_add, block);
    block.residual_add = index;
    block.h_src        = h;
    block.h            = operands[size_t(h)].node;
    block.branch       = operands[size_t(1 - h)].node;
    // Written over h, or to be: ggml reuses the memory of operand 0 where it can.
    block.residual = h == 0 || node->data == node->src[h]->data ? "in place" : "sequential";
    // The copy was made early, and the original may be gone when f is there; or h is computed later than f.
    if (copies_read_.count(node->src[h]) != 0 || block.h > block.branch) {
        block.output = index;
    }
    if (ggml_nrows(node) != n_tokens_) {
        refuse(block, "the residual add has " + std::to_string(ggml_nrows(node)) + " rows for " +
                          std::to_string(n_tokens_) + " tokens");
    }
}

// `node`, the last one added, is computed for the block: it must be one that can be left out.
void GraphLearner::take_in(FoundBlock & block, const ggml_tensor * node, const std::vector<Operand> & operands) {
    const std::string name  = "node '" + std::string(node->name) + "' of the " + name_of(block.kind) + " block ";
    const int         index = int(seen_.size()) - 1;
    mark(index, Role::body, block);
    place(index, block).derived = number_of(block);
    block.fetches_experts = block.fetches_experts || (node->op == GGML_OP_MUL_MAT_ID && is_copy(node->src[0]->name));
    for (const Operand & op : operands) {
        if (op.weight && is_spread(op.tensor)) {
            refuse(block, "its weights are spread over devices (split mode 'tensor')");
        }
        if (op.weight && !may_read(block.kind, op.tensor->name)) {
            refuse(block, name + "reads '" + op.tensor->name + "'");
        }
    }
    if ((node->flags & GGML_TENSOR_FLAG_OUTPUT) != 0) {
        refuse(block, name + "is an output of the graph");
    }
    if (!seen_[size_t(index)].writes) {
        return;
    }
    if (block.kind == BlockKind::ffn) {
        refuse(block, name + "writes a cache");
    } else if (node->op != GGML_OP_SET_ROWS) {
        refuse(block, name + "writes a recurrent state");
    }
}

// Parallel attention and FFN: the sum of f and one part of the residual is read by nothing but another such add.
void GraphLearner::find_output(FoundBlock & block) {
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
        mark(int(readers[0]), Role::layer_output, block);
        block.residual = "parallel";
        block.output   = int(readers[0]);
    }
}

// What is computed for the block alone, such as the norm of its input, is left out with it.
void GraphLearner::take_in_feeders(const FoundBlock & block) {
    constexpr uint8_t    k_block = 1, k_rest = 2;
    std::vector<uint8_t> readers(seen_.size(), 0);
    for (size_t i = seen_.size(); i-- > 0;) {
        const ggml_op op     = map_.nodes[i].op;
        const Place & of     = place(int(i), block);
        bool          inside = belongs(int(i), block) && of.role == Role::body;
        if (of.role == Role::none && readers[i] == k_block) {
            inside = seen_[i].removable || is_view(op);  // a view is left as it is, and hands on what reads it
            if (seen_[i].removable) {
                mark(int(i), Role::body, block);
            }
        }
        for (const int32_t operand : seen_[i].operands) {
            readers[size_t(operand)] |= inside ? k_block : k_rest;
        }
    }
}

// What the block writes into the cache comes from here.
void GraphLearner::find_cached(const FoundBlock & block) {
    std::vector<uint8_t> wanted(seen_.size(), 0);
    for (size_t i = seen_.size(); i-- > 0;) {
        const bool inside = belongs(int(i), block) && place(int(i), block).role == Role::body;
        wanted[i]         = wanted[i] || (inside && seen_[i].writes);
        if (!wanted[i]) {
            continue;
        }
        if (inside) {
            mark(int(i), Role::cached, block);
        }
        for (const int32_t operand : seen_[i].operands) {
            wanted[size_t(operand)] = 1;
        }
    }
}

// Attention that has no node in common with an FFN, and whose keys and values no other layer reads.
void GraphLearner::require_attention_alone(FoundBlock & block) {
    bool                                    attends = false;
    std::unordered_set<const ggml_tensor *> written;
    for (size_t i = 0; i < seen_.size(); ++i) {
        if (!belongs(int(i), block)) {
            continue;
        }
        const ggml_op op = map_.nodes[i].op;
        attends          = attends || op == GGML_OP_SOFT_MAX || op == GGML_OP_FLASH_ATTN_EXT;
        if (seen_[i].places[size_t(BlockKind::ffn)].role != Role::none) {
            refuse(block, "attention and FFN are parallel: they are added to the residual together");
        }
        if (seen_[i].writes) {
            written.insert(seen_[i].cache);
        }
    }
    if (!attends) {
        refuse(block, "it is no standard attention: no node of it is a softmax");
    }
    for (size_t i = 0; i < seen_.size(); ++i) {
        const auto reads = [&](int32_t operand) { return written.count(seen_[size_t(operand)].cache) != 0; };
        if (!belongs(int(i), block) && !is_view(map_.nodes[i].op) &&
            std::any_of(seen_[i].operands.begin(), seen_[i].operands.end(), reads)) {
            const int reader = place(int(i), block).block;
            refuse(block, "its keys and values are read by " +
                              (reader < 0 ? "others" : "layer " + std::to_string(layer_of(reader))) + " too");
        }
    }
}

void GraphLearner::describe(FoundBlock & block) {
    bool gated = false, experts = false, shared = false, fused = false, latent = false;
    for (size_t i = 0; i < seen_.size(); ++i) {
        const ggml_op op   = map_.nodes[i].op;
        Seen &        seen = seen_[i];
        if (!belongs(int(i), block)) {
            continue;
        }
        // Each device that computes a node of a block has to show that it honours the edits.
        if (const std::string & fault = seen.device ? device_fault_(*seen.device) : std::string(); !fault.empty()) {
            refuse(block, fault);
        }
        const Role role = place(int(i), block).role;
        if (role != Role::body && role != Role::cached) {
            continue;
        }
        gated   = gated || op == GGML_OP_GLU;
        experts = experts || op == GGML_OP_MUL_MAT_ID;
        block.bytes_per_token += seen.bytes;
        block.bytes_of_cache += role == Role::cached ? seen.bytes : 0;
        for (const BlockWeight & weight : seen.weights) {
            const auto has = [&](const char * stem) { return weight.name.find(stem) != std::string::npos; };
            shared         = shared || has("shexp") || has("chexps");
            fused          = fused || has("attn_qkv");
            latent         = latent || has("attn_kv_a");
            block.weights.push_back(weight);
        }
    }
    if (block.kind == BlockKind::ffn) {
        block.form = experts ? (shared ? "experts + shared" : "experts") : gated ? "gated" : "plain";
    } else {
        block.form = latent ? "latent" : fused ? "fused" : "separate";
    }
}

// Of the blocks that can be skipped.
void GraphLearner::take_roles() {
    for (size_t i = 0; i < seen_.size(); ++i) {
        for (const Place & place : seen_[i].places) {
            if (place.role != Role::none && map_.blocks[size_t(place.block)].skippable) {
                map_.nodes[i].role  = place.role;
                map_.nodes[i].block = int16_t(place.block);
            }
        }
    }
}

GraphMap GraphLearner::finish() {
    for (FoundBlock & block : map_.blocks) {
        if (block.layer < 0) {
            continue;
        }
        if (block.residual_add < 0) {
            refuse(block, "no residual add was found");
            continue;
        }
        take_in_feeders(block);
        if (block.kind == BlockKind::ffn) {
            find_output(block);
        } else {
            find_cached(block);
        }
    }
    for (FoundBlock & block : map_.blocks) {
        if (block.layer < 0) {
            continue;
        }
        if (block.kind == BlockKind::attention) {
            require_attention_alone(block);
        }
        describe(block);
        if (block.branch >= 0) {
            place(block.branch, block).role = Role::branch;
        }
        if (block.layer == map_.n_layer() - 1) {
            block.why_not = "it is of the last layer, which always runs";
        }
        block.skippable = block.why_not.empty();
    }
    take_roles();
    find_inputs();
    return std::move(map_);
}

}  // namespace ffnskip
