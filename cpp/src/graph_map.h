// Where the attention and FFN blocks are in the graph of a decode.
//
// A GraphMap describes a graph by structure alone: for each node, in the order the scheduler visits them, the
// operation and which earlier nodes it reads. It holds no address of a node, so it fits every graph of that structure,
// whatever its batch size and however often libllama has built it anew. Weights are told apart by address: those
// belong to the model and stay.
//
// The FFN block of layer L is what is derived from the weights blk.L.ffn_*, up to the residual add, and the attention
// block what is derived from blk.L.attn_*. Three shapes:
//
//   sequential   h ----> norm, FFN ----> f       out = f + h
//   in place     the same                        out = h + f, written over h
//   parallel     attention a and FFN f from x    out = (f + x) + a            h = x + a exists only as out - f
//
// Each kind is looked for as if the other were not there. What both lay claim to is the FFN's, and the attention block
// is refused.
#pragma once

#include "device_check.h"
#include "ffnskip/blocks.h"
#include "tensor_names.h"

#include <ggml.h>

#include <cstdint>
#include <optional>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

namespace ffnskip {

// What a node is to a block.
enum class Role : uint8_t {
    none,
    body,          // computed for the block alone: left out when it is skipped
    cached,        // body that keys and values come from: left out when they aren't written either
    branch,        // body, and its result is f, the block's part of the residual
    residual_add,  // adds f to the residual
    layer_output,  // parallel blocks: the later add whose result is h + f
};

struct Node {
    static constexpr int     k_src  = 3;   // operands compared; they tell structures apart
    static constexpr int32_t k_none = -1;  // no operand
    static constexpr int32_t k_leaf = -2;  // a weight, an input, a cache or a copy made by the scheduler

    ggml_op             op         = GGML_OP_NONE;
    Role                role       = Role::none;
    int16_t             block      = -1;                          // its number, where role is not none
    int32_t             src[k_src] = { k_none, k_none, k_none };  // index of the operand's node, or a constant above
    const ggml_tensor * weight     = nullptr;                     // operand 0, where that is a weight
    int16_t             product    = -1;  // product_number(): some input channels may be left out
    int16_t             input      = -1;  // input_of() the products that read this node; of experts, all is there now
};

// What users are told of a block, and where it is. Layer -1: the layer has none.
struct FoundBlock : Block {
    int branch       = -1;  // node indices
    int residual_add = -1;
    int h_src        = -1;  // operand number of h in the residual add
    int h            = -1;  // node index of that operand, or of what it is a copy of from another device
    // The node that is h + f, where h is not there yet, or no longer, when f is computed: in parallel blocks, and where
    // h was copied to another device early. Else -1.
    int output = -1;
    // Weights of experts come to the device as needed (batches of many rows), and ggml reads which are needed before it
    // asks about the node that needs them. Such a block has to be computed, even if every row skips it.
    bool fetches_experts = false;
};

// What products of one layer read. weights: none where the layer has no such matrix.
struct Input {
    int                              node = -1;  // index
    std::vector<const ggml_tensor *> weights;
    // The weights are experts' matrices, so many of which a token uses: their products leave channels out for several
    // rows, too, and the input stays as it is for others that read it. 0: plain matrices.
    int64_t n_experts_used = 0;
    int     ids            = -1;  // index of the node that says which
    // The block's result is normalised before it is added to the residual: of the input, only proportions count.
    bool        normalised = false;
    std::string why_not;         // channels can't be left out; empty: they can
    std::string why_not_sparse;  // but not by operations in place of the products

    bool usable() const { return !weights.empty() && why_not.empty(); }
    bool sparse() const { return usable() && why_not_sparse.empty(); }
};

inline int number_of(const Block & block) {
    return block_of(block.layer, block.kind);
}

// What users are told of an input, given its number.
LayerInput described(const Input & input, int number);

struct GraphMap {
    std::vector<Node>       nodes;
    std::vector<FoundBlock> blocks;  // [n_layer * k_block_kinds], by block_of()
    std::vector<Input>      inputs;  // [n_layer * k_input_kinds]

    int n_layer() const { return int(blocks.size()) / k_block_kinds; }
};

// True if `node` has the structure of `expected` in an evaluation whose earlier nodes are `seen`. `node` must be
// unedited.
bool matches(const Node & expected, const ggml_tensor * node, ggml_tensor * const * seen);

// Whether this node reads the token embeddings: the first of every evaluation.
bool reads_embedding(const ggml_tensor * node);

// Learns a GraphMap from the nodes of one evaluation, told in order. Allocates; not for the hot path.
class GraphLearner {
public:
    using DeviceFault = const std::string & (*)(ggml_backend_dev_t device);

    // A block on a device with a fault is refused.
    explicit GraphLearner(int n_layer, DeviceFault device_fault = edits_fault) : device_fault_(device_fault) {
        map_.blocks.resize(size_t(n_layer * k_block_kinds));
    }

    void     add(const ggml_tensor * node);
    GraphMap finish();

private:
    // A product whose input channels could be left out.
    struct Product {
        int                 node;
        int                 input;  // node index, of the original where it was copied to another device; -1: none
        int                 number;
        const ggml_tensor * weight;
        int64_t             n_experts_used;  // 0: it is a plain one
        int                 ids;
        std::string         why_not;
        std::string         why_not_sparse;
    };

    struct Operand {
        const ggml_tensor * tensor;
        int32_t             node   = Node::k_leaf;  // index
        bool                copied = false;         // of the node, to another device
        bool                weight = false;
    };

    // What a node is to the blocks of one kind, by number.
    struct Place {
        int  derived = -1;  // from the weights of this one
        int  block   = -1;  // that it has a role in
        Role role    = Role::none;
    };

    // What is remembered of a node beyond its Node. Its tensor may be gone by the time of finish().
    struct Seen {
        std::vector<int32_t>              operands;   // indices of all operands that are nodes
        std::vector<BlockWeight>          weights;    // that it reads
        uint64_t                          bytes = 0;  // of these, for one token
        Place                             places[k_block_kinds];
        const ggml_tensor *               cache      = nullptr;  // of the context, that it is a view of
        bool                              writes     = false;    // into it
        bool                              activation = false;    // [n_embd, rows] float32: could be a residual
        bool                              removable  = false;    // leaving it out can't be noticed but by its readers
        bool                              vectors    = false;    // rows of float32 numbers, without gaps
        std::optional<ggml_backend_dev_t> device;                // in whose memory it is, where it is in any of its own
    };

    Operand operand(const ggml_tensor * src) const;
    void    derive(const ggml_tensor * node, const std::vector<Operand> & operands, BlockKind kind);
    int     origin(const Operand & op, BlockKind kind) const;
    void    end_block(FoundBlock & block, const ggml_tensor * node, const std::vector<Operand> & operands, int h);
    void    take_in(FoundBlock & block, const ggml_tensor * node, const std::vector<Operand> & operands);
    bool    is_residual_add(const ggml_tensor * node, const std::vector<Operand> & operands, int block, int & h) const;
    Place & place(int node, const Block & block) { return seen_[size_t(node)].places[size_t(block.kind)]; }
    bool    belongs(int node, const Block & block) { return place(node, block).block == number_of(block); }
    void    mark(int node, Role role, const Block & block);
    void    find_output(FoundBlock & block);
    void    take_in_feeders(const FoundBlock & block);
    void    find_cached(const FoundBlock & block);
    void    require_attention_alone(FoundBlock & block);
    void    describe(FoundBlock & block);
    void    take_roles();
    void    take_product(const ggml_tensor * node);
    void    find_inputs();
    void    join(Input & input, const Product & product);
    int     memory_of(int node) const;
    void    require_only_readers(Input & input, int number);
    bool    is_normalised(const FoundBlock & block) const;

    DeviceFault                                      device_fault_;
    GraphMap                                         map_;
    int64_t                                          n_embd_   = 0;
    int64_t                                          n_tokens_ = 0;  // of the batch
    std::vector<Seen>                                seen_;
    std::vector<Product>                             products_;
    std::unordered_map<const ggml_tensor *, int32_t> index_;
    std::unordered_map<std::string, int32_t>         by_name_;
    std::unordered_set<const ggml_tensor *>          copies_read_;  // of nodes
};

}  // namespace ffnskip
