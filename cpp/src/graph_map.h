// Where the FFN blocks are in the graph of a decode.
//
// A GraphMap describes a graph by structure alone: for each node, in the order the scheduler visits them, the
// operation and which earlier nodes it reads. It holds no address of a node, so it fits every graph of that structure,
// whatever its batch size and however often libllama has built it anew. Weights are told apart by address: those
// belong to the model and stay.
//
// The FFN block of layer L is what is derived from the weights blk.L.ffn_*, up to the residual add. Three shapes:
//
//   sequential   h ----> norm, FFN ----> f       out = f + h
//   in place     the same                        out = h + f, written over h
//   parallel     attention a and FFN f from x    out = (f + x) + a            h = x + a exists only as out - f
#pragma once

#include "device_check.h"
#include "ffnskip/ffn_map.h"
#include "tensor_names.h"

#include <ggml.h>

#include <cstdint>
#include <optional>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

namespace ffnskip {

// What a node is to the FFN block of its layer.
enum class Role : uint8_t {
    none,
    body,          // computed for the FFN alone: left out when the block is skipped
    branch,        // body, and its result is f, the FFN's part of the residual
    residual_add,  // adds f to the residual
    layer_output,  // parallel blocks: the later add whose result is h + f
};

struct Node {
    static constexpr int     k_src  = 3;   // operands compared; no FFN operation of ggml has more that are nodes
    static constexpr int32_t k_none = -1;  // no operand
    static constexpr int32_t k_leaf = -2;  // a weight, an input, a cache or a copy made by the scheduler

    ggml_op             op         = GGML_OP_NONE;
    Role                role       = Role::none;
    int16_t             layer      = -1;                          // of the block, where role is not none
    int32_t             src[k_src] = { k_none, k_none, k_none };  // index of the operand's node, or a constant above
    const ggml_tensor * weight     = nullptr;                     // operand 0, where that is a weight
    int16_t             product    = -1;  // product_number(): some input channels may be left out
    int16_t             input      = -1;  // input_of() the products that read this node; of experts, all is there now
};

// What users are told of a block, and where it is. Layer -1: the layer has none.
struct Block : FfnBlock {
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

// What users are told of an input, given its number.
LayerInput described(const Input & input, int number);

struct GraphMap {
    std::vector<Node>  nodes;
    std::vector<Block> blocks;  // [n_layer]
    std::vector<Input> inputs;  // [n_layer * k_input_kinds]
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
        map_.blocks.resize(size_t(n_layer));
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

    // What is remembered of a node beyond its Node. Its tensor may be gone by the time of finish().
    struct Seen {
        std::vector<int32_t>              operands;            // indices of all operands that are nodes
        std::vector<FfnWeight>            weights;             // that it reads
        uint64_t                          bytes      = 0;      // of these, for one token
        int                               layer      = -1;     // derived from this layer's FFN weights
        bool                              activation = false;  // [n_embd, rows] float32: could be a residual
        bool                              removable  = false;  // leaving it out can't be noticed but by its readers
        bool                              vectors    = false;  // rows of float32 numbers, without gaps
        std::optional<ggml_backend_dev_t> device;              // in whose memory it is, where it is in any of its own
    };

    Operand operand(const ggml_tensor * src) const;
    void    derive(const ggml_tensor * node, const std::vector<Operand> & operands);
    int     layer_of(const Operand & op) const;
    void    end_block(Block & block, const ggml_tensor * node, const std::vector<Operand> & operands, int h);
    void    take_in(Block & block, const ggml_tensor * node, const std::vector<Operand> & operands);
    bool    is_residual_add(const ggml_tensor * node, const std::vector<Operand> & operands, int layer, int & h) const;
    void    mark(int node, Role role, int layer);
    void    refuse(int layer, const std::string & why);
    void    find_output(Block & block);
    void    take_in_feeders(const Block & block);
    void    describe(Block & block);
    void    take_product(const ggml_tensor * node);
    void    find_inputs();
    void    join(Input & input, const Product & product);
    int     memory_of(int node) const;
    void    require_only_readers(Input & input, int number);
    bool    is_normalised(const Block & block) const;

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
