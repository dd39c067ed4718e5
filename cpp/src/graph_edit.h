// Leaves nodes of a built graph out of a computation or has them computed otherwise, and puts them back.
//
// libllama reuses graphs between decodes, so an edit outlives the evaluation it was made for. Each edit therefore
// marks the node itself, in flag bits that ggml does not use: restore() needs no memory of what was done, and works
// on a node of a reused graph as on one of a graph built anew at the same address.
#pragma once

#include <ggml.h>

#include <algorithm>
#include <utility>

namespace ffnskip {

constexpr int32_t k_of_ids   = 1 << 26;  // ... it was a MUL_MAT_ID
constexpr int32_t k_replaced = 1 << 27;  // the operation and its parameters are those of another node
constexpr int32_t k_left_out = 1 << 28;  // GGML_TENSOR_FLAG_COMPUTE was cleared
constexpr int32_t k_passes_h = 1 << 29;  // an ADD became a CONT of its first operand
constexpr int32_t k_swapped  = 1 << 30;  // ... whose operands were exchanged for that
constexpr int32_t k_edited   = k_of_ids | k_replaced | k_left_out | k_passes_h | k_swapped;

// Nodes that only describe memory. (An operation done in place, SET_ROWS among them, has a view_src and is none.)
inline bool is_view(ggml_op op) {
    return op == GGML_OP_RESHAPE || op == GGML_OP_VIEW || op == GGML_OP_PERMUTE || op == GGML_OP_TRANSPOSE;
}

// Backends pass over a node without the COMPUTE flag; device_check.h finds those that don't. Views compute nothing and
// stay as they are: ggml's fusion checks want their flag.
inline void leave_out(ggml_tensor * node) {
    if (!is_view(node->op) && (node->flags & GGML_TENSOR_FLAG_COMPUTE) != 0) {
        node->flags = (node->flags & ~int32_t(GGML_TENSOR_FLAG_COMPUTE)) | k_left_out;
    }
}

// Makes the residual add hand on h, its operand number `h_src`, without the FFN's part. CONT is the same copy as DUP,
// and the one of the two that every backend has.
//
// The Vulkan backend, computing an ADD with a norm of it behind, also sums the squares that the norm needs, and does
// not look whether that norm is left out: the sums then go to the next norm that runs. That is right as long as nothing
// but copies of the sum lies between the two, which holds here: what follows a block left out is the CONT, and the norm
// that reads it.
inline void pass_h(ggml_tensor * add, int h_src) {
    if (add->data != nullptr && add->data == add->src[h_src]->data) {
        leave_out(add);  // done in place over h: the result is there already
        return;
    }
    if (h_src == 1) {
        std::swap(add->src[0], add->src[1]);
        add->flags |= k_swapped;
    }
    add->op = GGML_OP_CONT;
    add->flags |= k_passes_h;
}

// Half of the parameters of a node. Where the other half is not used, it keeps the first one during an edit.
constexpr size_t k_half_params = GGML_MAX_OP_PARAMS / sizeof(int32_t) / 2;

inline bool has_spare_params(const ggml_tensor * node) {
    const int32_t * second = node->op_params + k_half_params;
    return std::all_of(second, second + k_half_params, [](int32_t word) { return word == 0; });
}

// Has a MUL_MAT or MUL_MAT_ID computed by another operation, that of `by`. Both nodes have spare parameters.
inline void replace(ggml_tensor * node, const ggml_tensor * by) {
    std::copy_n(node->op_params, k_half_params, node->op_params + k_half_params);
    std::copy_n(by->op_params, k_half_params, node->op_params);
    node->flags |= node->op == GGML_OP_MUL_MAT_ID ? k_replaced | k_of_ids : k_replaced;
    node->op = by->op;
}

// Undoes whatever this file did to the node.
inline void restore(ggml_tensor * node) {
    if ((node->flags & k_edited) == 0) {
        return;
    }
    if ((node->flags & k_replaced) != 0) {
        std::copy_n(node->op_params + k_half_params, k_half_params, node->op_params);
        std::fill_n(node->op_params + k_half_params, k_half_params, 0);
        node->op = (node->flags & k_of_ids) != 0 ? GGML_OP_MUL_MAT_ID : GGML_OP_MUL_MAT;
    }
    if ((node->flags & k_left_out) != 0) {
        node->flags |= GGML_TENSOR_FLAG_COMPUTE;
    }
    if ((node->flags & k_passes_h) != 0) {
        node->op = GGML_OP_ADD;
    }
    if ((node->flags & k_swapped) != 0) {
        std::swap(node->src[0], node->src[1]);
    }
    node->flags &= ~k_edited;
}

}  // namespace ffnskip
